/* The section "images": choose or make a dataset, bring images in, look at them, take some out again. */
(function (app) {
    "use strict";

    const el = (...all) => app.el(...all);
    const dataset = (app.dataset = app.dataset || {});
    let parts = null;

    app.section({
        id: "images",
        title: () => app.t("Images"),
        draw(container) {
            parts = build();
            app.fill(
                container,
                parts.choice,
                parts.upload.element,
                parts.panel,
                parts.next.element,
            );
            parts.upload.name((dataset.chosen() || { name: "" }).name);
            drawCards();
            drawPanel();
            parts.pages.watch("images");
        },
        shown() {
            if (parts && parts.pages.answer) parts.pages.load({ quietly: true });
        },
    });

    app.store.on("datasets", () => {
        if (parts) {
            drawCards();
            showNext();
        }
    });
    app.store.on("dataset", () => {
        if (parts) {
            drawCards();
            drawPanel();
        }
    });
    for (const key of ["dataset", "datasets"])
        app.store.on(key, () => {
            if (parts) parts.upload.name((dataset.chosen() || { name: "" }).name);
        });

    function build() {
        const made = {
            cards: el("div", {
                class: "lora-trainer-datasets",
                role: "radiogroup",
                "aria-label": app.t("Datasets"),
            }),
            deleted: el("div", { class: "lora-trainer-row" }),
            panel: el("div", { class: "lora-trainer-images" }),
            selected: new Set(),
            anchor: null,
            focus: 0,
        };
        const remote = (app.store.get("home") || { host: { remote: true } }).host.remote;
        made.choice = el(
            "div",
            { class: "lora-trainer-card" },
            el(
                "div",
                { class: "lora-trainer-row lora-trainer-between" },
                el("h3", {}, app.t("Your datasets")),
                el(
                    "div",
                    { class: "lora-trainer-row" },
                    app.widgets.button({ label: app.t("New dataset"), onclick: () => create() }),
                    remote
                        ? null
                        : app.widgets.button({
                              label: app.t("Use a folder in place"),
                              title: app.t(
                                  "Your images stay where they are; captions are written beside them.",
                              ),
                              onclick: openFolder,
                          }),
                ),
            ),
            made.cards,
            made.deleted,
        );
        made.upload = app.upload.area({
            target: async (entries) => app.store.get("dataset") || makeFor(entries),
            done: async () => {
                await dataset.refresh();
                await made.pages.load();
            },
        });
        made.pages = dataset.pages({
            show: drawItems,
            fail: (problem) => app.fill(made.place, app.widgets.problem(problem)),
        });
        made.place = el("div");
        made.next = app.widgets.actions();
        made.onward = app.widgets.button({
            label: app.t("Go on to the captions"),
            kind: "primary",
            local: true,
            onclick: () => app.open("captions"),
        });
        made.next.fill(made.onward);
        return made;
    }

    /** Without images the next thing is to bring some, with them to go on. */
    function showNext() {
        const card = dataset.chosen();
        const ready = Boolean(card && card.count);
        parts.next.element.hidden = !card;
        parts.next.say(
            !card
                ? ""
                : card.problem
                  ? card.problem.message
                  : app.colon(card.name, dataset.count(card.count)),
        );
        parts.onward.disabled = !ready;
        app.widgets.makePrimary(parts.onward, ready);
        parts.upload.isNext(!ready);
    }

    // --- datasets --------------------------------------------------------------------------------------------------------------------

    function drawCards() {
        const cards = dataset.cards();
        if (!cards) return;
        const focused = parts.cards.contains(document.activeElement);
        const chosen = app.store.get("dataset");
        app.fill(
            parts.cards,
            cards.length
                ? cards.map((card, at) =>
                      datasetCard(card, card.id === chosen, chosen ? card.id === chosen : at === 0),
                  )
                : el(
                      "p",
                      { class: "lora-trainer-help" },
                      app.t(
                          "There is none yet. Drop your images below: 10 to 100 pictures of one style, character or thing are enough.",
                      ),
                  ),
        );
        showDeleted();
        if (focused)
            (
                parts.cards.querySelector("[aria-checked=true]") ||
                parts.cards.querySelector("button") ||
                parts.cards
            ).focus();
    }

    function datasetCard(card, chosen, reachable) {
        const words = card.problem
            ? card.problem.message
            : card.count
              ? app.t("{images}, {captioned} with a caption", {
                    images: dataset.count(card.count),
                    captioned: app.number(card.captioned),
                })
              : app.t("Empty");
        const cover = el(
            "span",
            { class: "lora-trainer-thumb" },
            card.cover ? el("img", { src: card.cover, alt: "", loading: "lazy" }) : null,
        );
        return el(
            "button",
            {
                type: "button",
                role: "radio",
                class: "lora-trainer-dataset",
                "aria-checked": String(chosen),
                tabindex: reachable ? "0" : "-1",
                title: card.path || card.name,
                onclick: () => dataset.choose(card.id),
                onkeydown: moveAmongCards,
            },
            cover,
            el("span", { class: "lora-trainer-dataset-name" }, card.name),
            el("span", { class: "lora-trainer-help" }, words),
        );
    }

    function moveAmongCards(event) {
        const way = { ArrowRight: 1, ArrowDown: 1, ArrowLeft: -1, ArrowUp: -1 }[event.key];
        if (!way) return;
        event.preventDefault();
        const all = [...parts.cards.querySelectorAll("[role=radio]")];
        const next = all[(all.indexOf(event.currentTarget) + way + all.length) % all.length];
        next.focus();
        next.click();
    }

    async function make(name) {
        const card = await app.api.post("datasets", { name });
        dataset.update(card);
        dataset.choose(card.id);
        return card;
    }

    /** A dataset for what was dropped; null if nobody wants one. A folder and a zip have a name; the LoRA will have it too, so loose files get one. */
    async function makeFor(entries) {
        const first = entries[0].path;
        const named = first.includes("/")
            ? first.split("/")[0]
            : /\.zip$/i.test(first)
              ? first.replace(/\.zip$/i, "")
              : "";
        if (named) return (await make(named)).id;
        return new Promise((resolve) => {
            let made = null;
            askName(
                app.t("New dataset"),
                "",
                app.t("Add the images"),
                async (name) => {
                    made = (await make(name)).id;
                },
                () => resolve(made),
            );
        });
    }

    function askName(title, value, label, act, onclose = null) {
        const input = app.widgets.text({ value, maxlength: 100 });
        const asked = app.widgets.dialog({
            title,
            onclose,
            body: app.widgets.labelled(app.t("Name"), input, {
                help: app.t(
                    "For example what the images show. The LoRA gets this name too, unless you give it another.",
                ),
            }),
            actions: [
                { label: app.t("Cancel") },
                { label, kind: "primary", onclick: () => act(input.value) },
            ],
        });
        input.addEventListener("keydown", (event) => {
            if (event.key === "Enter" && !event.isComposing)
                asked.element.querySelector(".lora-trainer-primary").click();
        });
        input.focus();
        input.select();
    }

    function create() {
        askName(app.t("New dataset"), "", app.t("Create"), make);
    }

    function openFolder() {
        const input = app.widgets.text({ placeholder: "C:\\Pictures\\my style" });
        const asked = app.widgets.dialog({
            title: app.t("Use a folder in place"),
            body: app.widgets.labelled(app.t("Folder"), input, {
                help: app.t(
                    "The folder with your images on this computer. It stays where it is; captions are written into it.",
                ),
            }),
            actions: [
                { label: app.t("Cancel") },
                {
                    label: app.t("Use this folder"),
                    kind: "primary",
                    onclick: async () => {
                        const card = await app.api.post("datasets/open", { folder: input.value });
                        dataset.update(card);
                        dataset.choose(card.id);
                    },
                },
            ],
        });
        input.addEventListener("keydown", (event) => {
            if (event.key === "Enter" && !event.isComposing)
                asked.element.querySelector(".lora-trainer-primary").click();
        });
        input.focus();
    }

    async function discard(card) {
        if (card.lost) {
            dataset.choose("");
            await dataset.refresh();
            return;
        }
        const message = card.external
            ? app.t("The folder itself stays as it is.")
            : app.t("{count} go to the trash in the data folder.", {
                  count: dataset.count(card.count),
              });
        const title = card.external
            ? app.t("Take {name} off the list?", { name: card.name })
            : app.t("Delete {name}?", { name: card.name });
        if (
            !(await app.widgets.confirm({
                title,
                message,
                label: card.external ? app.t("Take off the list") : app.t("Delete"),
                kind: "stop",
            }))
        )
            return;
        const { trash } = await app.api.post(dataset.path("delete", card.id));
        dataset.choose("");
        await dataset.refresh();
        if (trash)
            app.widgets.toast(app.t("{name} is in the trash.", { name: card.name }), {
                seconds: 15,
                action: { label: app.t("Undo"), onclick: () => bringBack(trash) },
            });
    }

    async function bringBack(trash) {
        const card = await app.api.post(
            "deleted-datasets/" + encodeURIComponent(trash) + "/restore",
            {},
        );
        dataset.update(card);
        dataset.choose(card.id);
    }

    /** Somebody else may have deleted it: whoever misses it finds it here, as long as the trash is not emptied. */
    async function showDeleted() {
        const all = await app.api.get("deleted-datasets");
        app.fill(
            parts.deleted,
            all.length
                ? app.widgets.button({
                      label: app.t("Deleted datasets ({count})", { count: app.number(all.length) }),
                      onclick: () => chooseDeleted(all),
                  })
                : null,
        );
    }

    function chooseDeleted(all) {
        const list = el(
            "ul",
            { class: "lora-trainer-removed" },
            all.map((entry) =>
                el(
                    "li",
                    {},
                    el(
                        "span",
                        {},
                        entry.name,
                        el("span", { class: "lora-trainer-help" }, " " + app.when(entry.time)),
                    ),
                    app.widgets.button({
                        label: app.t("Bring back"),
                        onclick: async () => {
                            await bringBack(entry.id);
                            shown.close();
                        },
                    }),
                ),
            ),
        );
        const shown = app.widgets.dialog({ title: app.t("Deleted datasets"), body: list });
    }

    // --- the chosen dataset ----------------------------------------------------------------------------------------------------------

    function drawPanel() {
        const card = dataset.chosen();
        parts.selected.clear();
        parts.focus = 0;
        parts.shownRevision = "";
        Object.assign(parts.pages.query, { offset: 0, filter: "all", text: "" });
        showNext();
        if (!card) {
            app.fill(parts.panel);
            return;
        }
        const remote = app.store.get("home").host.remote;
        parts.place = el("div");
        parts.tools = el("div", { class: "lora-trainer-row" });
        app.fill(
            parts.panel,
            el(
                "div",
                { class: "lora-trainer-row lora-trainer-between" },
                el("h3", {}, card.name),
                el(
                    "div",
                    { class: "lora-trainer-row" },
                    app.widgets.button({
                        label: app.t("Rename"),
                        onclick: () =>
                            askName(
                                app.t("Rename"),
                                dataset.chosen().name,
                                app.t("Rename"),
                                async (name) =>
                                    dataset.update(
                                        await app.api.post(dataset.path("rename"), { name }),
                                    ) ||
                                    (parts.panel.querySelector("h3").textContent =
                                        dataset.chosen().name),
                            ),
                    }),
                    remote
                        ? null
                        : app.widgets.button({
                              label: app.t("Show in file manager"),
                              onclick: () => app.api.post(dataset.path("folder")),
                          }),
                    app.widgets.button({
                        label: card.external ? app.t("Take off the list") : app.t("Delete"),
                        onclick: () => discard(dataset.chosen()),
                    }),
                ),
            ),
            el(
                "div",
                { class: "lora-trainer-row lora-trainer-between" },
                dataset.filters(parts.pages),
                parts.tools,
            ),
            parts.place,
            parts.pages.bar,
        );
        parts.pages.load();
    }

    function drawItems(answer) {
        const keys = new Set(answer.items.map((item) => item.key));
        for (const key of [...parts.selected]) if (!keys.has(key)) parts.selected.delete(key);
        parts.focus = Math.min(parts.focus, Math.max(0, answer.items.length - 1));
        const had = parts.grid && parts.grid.contains(document.activeElement);
        parts.grid = el(
            "div",
            {
                class: "lora-trainer-grid",
                role: "listbox",
                "aria-multiselectable": "true",
                "aria-label": app.t(
                    "Images. Arrow keys move, Enter enlarges, Space selects, Delete removes.",
                ),
                onkeydown: onKey,
            },
            answer.items.map((item, at) => cell(item, at)),
        );
        app.fill(
            parts.place,
            dataset.remarks(answer.findings, parts.pages),
            answer.items.length
                ? parts.grid
                : el(
                      "p",
                      { class: "lora-trainer-help lora-trainer-empty" },
                      answer.total
                          ? app.t("No image is like that.")
                          : app.t("No images yet. Drop some above."),
                  ),
        );
        drawTools();
        if (had && answer.items.length) cells()[parts.focus].focus();
    }

    const cells = () => [...parts.grid.children];

    function cell(item, at) {
        const remarks = item.findings.map((finding) => finding.message).join("\n");
        const worst = item.findings.some((finding) => finding.kind !== "no-caption");
        const element = el(
            "div",
            {
                role: "option",
                class: "lora-trainer-cell",
                tabindex: at === parts.focus ? "0" : "-1",
                "aria-selected": String(parts.selected.has(item.key)),
                dataset: { key: item.key },
                title: item.name + (remarks ? "\n" + remarks : ""),
                "aria-label": [item.name, item.caption || app.t("no caption"), worst ? remarks : ""]
                    .filter(Boolean)
                    .join(", "),
            },
            dataset.thumbnail(item),
            el("span", { class: "lora-trainer-check", "aria-hidden": "true" }),
            el("span", { class: "lora-trainer-cell-name" }, item.name),
            el(
                "span",
                { class: "lora-trainer-help" },
                item.width ? item.width + " \u00d7 " + item.height : app.t("Cannot be read"),
                worst
                    ? el("b", {}, " \u00b7 " + app.t("remark"))
                    : item.caption
                      ? null
                      : " \u00b7 " + app.t("no caption"),
            ),
        );
        element.addEventListener("click", (event) => {
            focusOn(at);
            if (event.shiftKey && parts.anchor !== null) selectRange(parts.anchor, at);
            else if (event.ctrlKey || event.metaKey || event.target.closest(".lora-trainer-check"))
                toggle(at);
            else dataset.enlarge(parts.pages.answer.items, item);
        });
        return element;
    }

    function focusOn(at) {
        const all = cells();
        if (all[parts.focus]) all[parts.focus].tabIndex = -1;
        parts.focus = at;
        all[at].tabIndex = 0;
        all[at].focus();
    }

    function toggle(at) {
        const { key } = cells()[at].dataset;
        if (!parts.selected.delete(key)) parts.selected.add(key);
        parts.anchor = at;
        showSelection();
    }

    function selectRange(from, to) {
        for (const each of cells().slice(Math.min(from, to), Math.max(from, to) + 1))
            parts.selected.add(each.dataset.key);
        showSelection();
    }

    function showSelection() {
        for (const each of cells())
            each.setAttribute("aria-selected", String(parts.selected.has(each.dataset.key)));
        drawTools();
    }

    function columns() {
        const all = cells();
        const top = all[0].offsetTop;
        const next = all.findIndex((each) => each.offsetTop !== top);
        return next === -1 ? all.length : next;
    }

    function onKey(event) {
        const all = cells();
        const moves = {
            ArrowRight: 1,
            ArrowLeft: -1,
            ArrowDown: columns(),
            ArrowUp: -columns(),
            Home: -all.length,
            End: all.length,
        };
        // the host listens for keys everywhere
        event.stopPropagation();
        if (event.key in moves) {
            const to = Math.min(all.length - 1, Math.max(0, parts.focus + moves[event.key]));
            if (event.shiftKey) selectRange(parts.focus, to);
            focusOn(to);
        } else if (event.key === " ") toggle(parts.focus);
        else if (event.key === "Enter")
            dataset.enlarge(parts.pages.answer.items, parts.pages.answer.items[parts.focus]);
        else if (event.key === "Delete")
            remove(
                parts.selected.size ? [...parts.selected] : [all[parts.focus].dataset.key],
            ).catch(app.widgets.toastProblem);
        else if (event.key === "a" && (event.ctrlKey || event.metaKey))
            selectRange(0, all.length - 1);
        else if (event.key === "Escape") {
            parts.selected.clear();
            showSelection();
        } else return;
        event.preventDefault();
    }

    function drawTools() {
        const { answer } = parts.pages;
        const every = answer.items.length > 0 && parts.selected.size === answer.items.length;
        app.fill(
            parts.tools,
            answer.items.length
                ? app.widgets.button({
                      label: every ? app.t("Select none") : app.t("Select this page"),
                      onclick: () => {
                          parts.selected = new Set(
                              every ? [] : answer.items.map((item) => item.key),
                          );
                          showSelection();
                      },
                  })
                : null,
            app.widgets.button({
                label: parts.selected.size
                    ? app.t("Remove {count}", { count: app.number(parts.selected.size) })
                    : app.t("Remove"),
                disabled: !parts.selected.size,
                onclick: () => remove([...parts.selected]),
            }),
            answer.removed
                ? app.widgets.button({
                      label: app.t("Removed images ({count})", {
                          count: app.number(answer.removed),
                      }),
                      onclick: showRemoved,
                  })
                : null,
        );
    }

    // --- removing and bringing back --------------------------------------------------------------------------------------------------

    async function remove(keys) {
        const id = app.store.get("dataset");
        await app.api.post(dataset.path("remove", id), { keys });
        parts.selected.clear();
        await parts.pages.load();
        app.widgets.toast(
            app.count(keys.length, "{count} image removed", "{count} images removed"),
            {
                seconds: 12,
                action: { label: app.t("Undo"), onclick: () => restore(id, keys) },
            },
        );
    }

    async function restore(id, keys) {
        await app.api.post(dataset.path("restore", id), { keys });
        await parts.pages.load();
    }

    async function showRemoved() {
        const id = app.store.get("dataset");
        const removed = await app.api.get(dataset.path("removed", id));
        const list = el("ul", { class: "lora-trainer-removed" });
        const line = (entry) => {
            const row = el(
                "li",
                {},
                el(
                    "span",
                    {},
                    entry.name,
                    el("span", { class: "lora-trainer-help" }, " " + app.when(entry.time)),
                ),
                app.widgets.button({
                    label: app.t("Bring back"),
                    onclick: async () => {
                        await restore(id, [entry.key]);
                        row.remove();
                    },
                }),
            );
            return row;
        };
        app.fill(list, removed.map(line));
        app.widgets.dialog({ title: app.t("Removed images"), body: list });
    }
})((window.loraTrainer = window.loraTrainer || {}));
