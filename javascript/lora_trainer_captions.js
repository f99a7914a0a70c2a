/* The section "captions": each picture with its caption beside it, saved when the box is left. What another browser or an editor wrote meanwhile is shown
 * when it is seen, and never overwritten: the server compares, and the visitor chooses. */
(function (app) {
    "use strict";

    const el = (...all) => app.el(...all);
    const dataset = (app.dataset = app.dataset || {});
    let parts = null;

    app.section({
        id: "captions",
        title: () => app.t("Captions"),
        draw(container) {
            parts = build();
            app.fill(container, parts.panel);
            drawPanel();
            parts.pages.watch("captions");
        },
        shown() { if (parts && parts.pages.answer) parts.pages.load({ quietly: true }); },
        hidden() { saveAll(); },
    });

    app.store.on("dataset", () => { if (parts) drawPanel(); });
    app.store.on("settings", () => { if (parts) for (const row of parts.rows.values()) row.describe(); });
    document.addEventListener("visibilitychange", () => { if (document.visibilityState === "hidden") saveAll(); });
    window.addEventListener("beforeunload", (event) => { if (parts && [...parts.rows.values()].some((row) => row.isUnsaved())) event.preventDefault(); });

    function build() {
        const made = { panel: el("div", { class: "lora-trainer-captions" }), rows: new Map(), list: null };
        made.pages = dataset.pages({ show: drawRows, fail: (problem) => app.fill(made.place, app.widgets.problem(problem)), gone: countGone });
        made.place = el("div");
        return made;
    }

    const trigger = () => String((app.store.get("settings") || {}).trigger_word || "").trim();

    function drawPanel() {
        saveAll();
        parts.rows.clear();
        Object.assign(parts.pages.query, { offset: 0, filter: "all", text: "" });
        const card = dataset.chosen();
        if (!card) {
            app.fill(parts.panel, app.widgets.notice("info", app.t("Choose the images first."), "", app.widgets.button({ label: app.t("Go to the images"), kind: "primary", onclick: () => app.open("images") })));
            return;
        }
        parts.place = el("div");
        parts.counts = el("p", { class: "lora-trainer-help", role: "status" });
        const word = app.widgets.text({ value: trigger(), maxlength: 60, onchange: (value) => app.store.set("settings", { ...app.store.get("settings"), trigger_word: value.trim() }) });
        app.fill(parts.panel,
            el("div", { class: "lora-trainer-card lora-trainer-captions-top" },
                el("div", {}, el("h3", {}, card.name), parts.counts, el("p", { class: "lora-trainer-help" },
                    app.t("Say what is in each picture, also what should be able to change: clothes, place, light. A box is saved when you leave it; Ctrl+Enter goes on to the next, Escape takes back what was typed."))),
                app.widgets.labelled(app.t("Trigger word"), word, { help: app.t("A rare word that calls the LoRA in a prompt. Training puts it in front of every caption that lacks it.") })),
            dataset.filters(parts.pages), parts.place, parts.pages.bar,
            app.widgets.button({ label: app.t("Go on to the settings"), kind: "primary", onclick: () => app.open("settings") }));
        parts.pages.load();
    }

    /** Of the rows shown, how many have left the filter by what was written into them. */
    function countGone() {
        const { filter } = parts.pages.query;
        if (filter !== "missing" && filter !== "captioned") return 0;
        return [...parts.rows.values()].filter((row) => row.isEmpty() === (filter === "captioned")).length;
    }

    function drawRows(answer, quietly) {
        const items = new Map(answer.items.map((item) => [item.key, item]));
        const kept = new Map();
        // nobody asked for this page: what the visitor has just written stays where it is, though it may no longer fit the filter or the order
        if (quietly) for (const [key, row] of parts.rows) if (items.has(key) || row.isBusy() || row.isTouched()) kept.set(key, row);
        for (const item of answer.items) kept.set(item.key, parts.rows.get(item.key) || captionRow(item));
        // and a row whose text is not saved yet never leaves
        for (const [key, row] of parts.rows) if (!kept.has(key) && row.isBusy()) kept.set(key, row);
        for (const [key, row] of kept) if (items.has(key)) row.take(items.get(key), quietly);
        parts.rows = kept;
        showCounts(answer.captioned, answer.total);
        const elements = [...kept.values()].map((row) => row.element);
        const same = parts.list && parts.list.isConnected && parts.list.children.length === elements.length && elements.every((element, at) => parts.list.children[at] === element);
        // untouched, the focus and the place in the page stay
        if (same) return;
        const focused = document.activeElement;
        parts.list = el("div", { class: "lora-trainer-caption-rows" }, elements);
        app.fill(parts.place, dataset.remarks(answer.findings),
            elements.length ? parts.list : el("p", { class: "lora-trainer-help lora-trainer-empty" }, answer.total ? app.t("No image is like that.") : app.t("There are no images yet.")));
        if (focused && parts.list.contains(focused)) focused.focus({ preventScroll: true });
    }

    function showCounts(captioned, total) {
        parts.counts.textContent = app.t("{done} of {count} with a caption", { done: app.number(captioned), count: app.number(total) });
    }

    function saveAll() {
        if (parts) for (const row of parts.rows.values()) row.save();
    }

    /** A text as the server will keep it. */
    const tidy = (text) => text.split(/\s+/).filter(Boolean).join(" ");

    const words = (text) => (text.match(/[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[^\s,\uFF0C\u3002.;:\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]+/gu) || []).length;

    function hasTrigger(text, word) {
        const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
        return new RegExp("(?<![\\p{L}\\p{N}_])" + escaped + "(?![\\p{L}\\p{N}_])", "iu").test(text);
    }

    /** One picture and its box. `base` is what the server said last; what is typed is compared with it when it is saved. */
    function captionRow(first) {
        let item = first, base = first.caption, saving = null, conflict = false, touched = false;
        const id = dataset.path("caption");
        const box = app.widgets.text({ value: base, rows: 4, label: app.t("Caption of {name}", { name: item.name }), placeholder: app.t("What is in the picture?"), oninput: () => { mark("", ""); describe(); } });
        const state = el("span", { class: "lora-trainer-caption-state", role: "status" });
        const facts = el("span", { class: "lora-trainer-help" });
        const remarks = el("div", { class: "lora-trainer-help lora-trainer-caption-remarks" });
        const choice = el("div");
        const picture = el("button", { type: "button", class: "lora-trainer-caption-picture", tabindex: "-1", "aria-label": app.t("Enlarge {name}", { name: item.name }), onclick: enlarge }, dataset.thumbnail(item));
        const element = el("div", { class: "lora-trainer-caption-row" }, picture,
            el("div", { class: "lora-trainer-caption-text" }, el("div", { class: "lora-trainer-row lora-trainer-between" }, el("b", { class: "lora-trainer-cell-name" }, item.name), state), box, choice, facts, remarks));

        box.addEventListener("blur", () => save());
        box.addEventListener("keydown", (event) => {
            if (event.isComposing) return;
            if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
                event.preventDefault();
                const next = element.nextElementSibling;
                save();
                if (next) next.querySelector("textarea").focus();
            } else if (event.key === "Escape" && !conflict) {
                box.value = base;
                mark("", "");
                describe();
            } else if (event.key === "Enter") event.preventDefault(); // a caption is one line
        });

        function enlarge() {
            const { items } = parts.pages.answer;
            const shown = items.find((one) => one.key === item.key);
            dataset.enlarge(shown ? items : [item], shown || item);
        }

        function mark(kind, text) {
            state.dataset.kind = kind;
            state.textContent = text;
        }

        function describe() {
            const text = tidy(box.value), word = trigger();
            const sources = { metadata: app.t("from {file}", { file: item.caption_file }), text: app.t("from {file}", { file: item.caption_file }), folder_name: app.t("from the folder's name"), trigger_word: app.t("the trigger word") };
            app.fill(facts, [
                app.count(text.length, "{count} character", "{count} characters"), app.count(words(text), "{count} word", "{count} words"),
                text === base && item.source ? sources[item.source] : "",
                word && text && !hasTrigger(text, word) ? app.t("trained as \u201c{word}, \u2026\u201d", { word }) : "",
            ].filter(Boolean).join(" \u00b7 "));
            app.fill(remarks, item.findings.filter((finding) => finding.kind !== "no-caption").map((finding) => [el("p", {}, finding.message), finding.hint ? el("p", {}, finding.hint) : null]));
        }

        const isUnsaved = () => tidy(box.value) !== base;

        async function save() {
            if (saving) return saving;
            if (conflict || !isUnsaved()) return null;
            saving = send(tidy(box.value), base);
            try { await saving; } finally { saving = null; }
            // typed on while it was being saved
            return document.activeElement !== box && isUnsaved() && state.dataset.kind === "saved" ? save() : null;
        }

        async function send(text, was) {
            mark("saving", app.t("Saving"));
            try {
                const before = base;
                const answer = await app.api.post(id, { key: item.key, caption: text, was });
                item = answer;
                base = answer.caption;
                // what the server keeps may be tidier; what was typed since stays
                if (tidy(box.value) === text) box.value = base;
                settle(before);
            } catch (problem) {
                if (problem.status === 409) ask(text, problem.current);
                else mark("problem", app.t("Not saved: {reason}", { reason: problem.message }));
            }
        }

        function settle(before) {
            touched = true;
            mark("saved", app.t("Saved"));
            describe();
            const card = dataset.chosen();
            if (!card || !before === !base) return;
            const captioned = card.captioned + (base ? 1 : -1);
            dataset.update({ id: card.id, captioned });
            showCounts(captioned, card.count);
        }

        /** Two texts, one place: the visitor chooses. */
        function ask(mine, theirs) {
            conflict = true;
            mark("problem", app.t("Not saved"));
            const done = () => { conflict = false; app.fill(choice); };
            app.fill(choice, el("div", { class: "lora-trainer-notice lora-trainer-notice-warning", role: "alert" },
                el("p", {}, app.t("Someone else changed this caption meanwhile. Which one is to stay?")),
                el("dl", { class: "lora-trainer-two-texts" }, el("dt", {}, app.t("Yours")), el("dd", {}, mine || app.t("(empty)")), el("dt", {}, app.t("Theirs")), el("dd", {}, theirs || app.t("(empty)"))),
                el("div", { class: "lora-trainer-row" },
                    app.widgets.button({ label: app.t("Keep mine"), onclick: async () => { done(); base = theirs; await send(tidy(box.value), theirs); } }),
                    app.widgets.button({ label: app.t("Take theirs"), onclick: () => { done(); base = theirs; box.value = theirs; mark("", ""); describe(); parts.pages.load(); } }))));
        }

        describe();
        return {
            element,
            save,
            describe,
            isUnsaved,
            isBusy: () => Boolean(saving) || conflict || isUnsaved(),
            /** Whether something was saved since the visitor asked for this page. */
            isTouched: () => touched,
            isEmpty: () => !base,
            /** What the server says now. What is being typed stays; saving it will compare. */
            take(now, quietly) {
                if (!quietly) touched = false;
                if (saving || conflict) return;
                const untouched = !isUnsaved();
                if (now.thumbnail !== item.thumbnail) app.fill(picture, dataset.thumbnail(now));
                item = now;
                if (untouched) {
                    if (base !== now.caption) { base = now.caption; box.value = base; mark("", app.t("Changed elsewhere")); }
                    describe();
                }
            },
        };
    }

    app.captions = { tidy, words, hasTrigger };
})((window.loraTrainer = window.loraTrainer || {}));
