/* The table of tags: how often each is used. A click shows the images that have it; a button takes it away everywhere. Of captions that are sentences
 * the words are counted instead. */
(function (app) {
    "use strict";

    const MOST = 300;
    const el = (...all) => app.el(...all);
    const bench = (app.workbench = app.workbench || {});
    const dataset = (app.dataset = app.dataset || {});

    bench.tagPanel = { panel, toggle: () => {} };

    function panel() {
        const wish = { kind: "", sort: "count", scope: "all" };
        const list = el("ul", { class: "lora-trainer-bench-tags" });
        const words = el("p", { class: "lora-trainer-help", role: "status" });
        let table = null, find = "", serial = 0, toggler = null;
        const kind = app.widgets.select({ label: app.t("Count"), value: "tags", options: [{ value: "tags", label: app.t("Tags (between commas)") }, { value: "words", label: app.t("Single words") }], onchange: (value) => { wish.kind = value; return load(); } });
        const sort = app.widgets.select({ label: app.t("Order"), value: "count", options: [{ value: "count", label: app.t("The most frequent first") }, { value: "name", label: app.t("By name") }], onchange: (value) => { wish.sort = value; load(); } });
        const scope = app.widgets.select({ label: app.t("Of which images"), value: "all", options: [{ value: "all", label: app.t("Of all images") }, { value: "matching", label: app.t("Of what the filter shows") }], onchange: (value) => { wish.scope = value; load(); } });
        const search = app.widgets.text({ label: app.t("Find a tag"), placeholder: app.t("Find a tag"), oninput: (value) => { find = value.trim().toLowerCase(); draw(); } });
        const element = el("section", { class: "lora-trainer-card lora-trainer-bench-tag-panel", hidden: true, "aria-label": app.t("Tags") },
            el("div", { class: "lora-trainer-filters" }, search, kind, sort, scope), words, list);

        async function load() {
            const mine = (serial += 1);
            const query = { ...(wish.scope === "matching" ? bench.where() : {}), kind: wish.kind || "tags", sort: wish.sort, limit: MOST };
            try {
                let found = await app.api.get(dataset.path("tags"), query);
                if (!wish.kind && found.mostly === "sentences" && mine === serial) found = await app.api.get(dataset.path("tags"), { ...query, kind: "words" });
                if (mine !== serial) return;
                table = found;
                kind.value = found.kind;
                draw();
            } catch (problem) {
                if (mine === serial) app.fill(words, problem.message);
            }
        }

        function draw() {
            if (!table) return;
            const shown = table.tags.filter(({ tag }) => !find || tag.toLowerCase().includes(find));
            const most = Math.max(1, ...table.tags.map(({ count }) => count));
            words.textContent = table.kind === "words" ? app.count(table.distinct, "{count} word", "{count} different words") : app.count(table.distinct, "{count} tag", "{count} different tags");
            app.fill(list, shown.map((tag) => line(tag, most)));
        }

        function line({ tag, count }, most) {
            const { query } = bench.page.pages;
            const isTag = table.kind === "tags";
            const on = isTag ? query.tag === tag : query.text === tag;
            const show = () => bench.ask(isTag ? { tag: on ? "" : tag } : { text: on ? "" : tag });
            return el("li", {},
                el("button", { type: "button", class: "lora-trainer-bench-tag", "aria-pressed": String(on), title: tag, "aria-label": app.t("{tag}: in {count} captions. Show them", { tag, count: app.number(count) }), onclick: () => { show().catch(app.widgets.toastProblem); } },
                    el("span", { class: "lora-trainer-bench-tag-bar", style: { width: (count / most) * 100 + "%" } }), el("span", { class: "lora-trainer-bench-tag-name" }, tag), el("span", { class: "lora-trainer-bench-tag-count" }, app.number(count))),
                bench.link(app.t("Rename"), () => rename(tag, isTag), { "aria-label": app.t("Rename {tag}", { tag }) }),
                bench.link(app.t("Remove"), () => remove(tag, isTag), { "aria-label": app.t("Remove {tag} from all captions", { tag }) }));
        }

        const remove = (tag, isTag) => (isTag ? bench.change({ where: {} }, { do: "remove", tags: [tag] }) : bench.change({ where: {} }, { do: "replace", find: tag, replace: "", regex: false, case: false, whole: true }));

        const rename = (tag, isTag) => (isTag ? bench.bulk.open("replace-tag", { tag, replace: tag }) : bench.bulk.open("replace", { find: tag, replace: tag }));

        bench.tagPanel.toggle = (button) => {
            toggler = button;
            element.hidden = !element.hidden;
            toggler.setAttribute("aria-expanded", String(!element.hidden));
            if (!element.hidden) { load(); search.focus(); }
        };
        bench.on("edits", () => { if (!element.hidden) load(); });
        bench.on("answer", () => { if (!element.hidden) draw(); });
        return element;
    }
})((window.loraTrainer = window.loraTrainer || {}));
