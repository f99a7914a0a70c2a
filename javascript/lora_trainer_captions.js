/* The section "captions": each picture with its caption beside it, saved when the box is left. What another browser or an editor wrote meanwhile is shown
 * when it is seen, and never overwritten: the server compares, and the visitor chooses. One row is lora_trainer_workbench_row.js; what is done with many
 * captions at once is in the other files of the workbench. */
(function (app) {
    "use strict";

    const el = (...all) => app.el(...all);
    const dataset = (app.dataset = app.dataset || {});
    const bench = (app.workbench = app.workbench || {});
    let parts = null;

    app.section({
        id: "captions",
        title: () => app.t("Captions"),
        draw(container) {
            parts = build();
            app.fill(container, parts.panel);
            drawPanel();
            parts.pages.watch("captions");
            app.poll(catchUp);
            bench.captioner.watch();
            bench.check.watch();
        },
        shown() {
            if (!parts || !parts.pages.answer) return;
            // lengths and filters depend on the settings, which may be others now
            if (bench.followSettings()) bench.turn({ offset: parts.pages.query.offset });
            else parts.pages.load({ quietly: true });
            bench.captioner.look();
            bench.check.look();
        },
        hidden() {
            saveAll();
        },
    });

    app.store.on("dataset", () => {
        if (parts) drawPanel();
    });
    app.store.on("settings", () => {
        if (!parts) return;
        for (const row of parts.rows.values()) row.describe();
        if (parts.trigger && document.activeElement !== parts.trigger.input) parts.trigger.show();
    });
    document.addEventListener("visibilitychange", () => {
        if (document.visibilityState === "hidden") saveAll();
    });

    function build() {
        const made = {
            panel: el("div", { class: "lora-trainer-captions" }),
            rows: new Map(),
            list: null,
        };
        made.pages = dataset.pages({
            show: drawRows,
            fail: (problem) =>
                app.fill(made.trouble, problem.status ? app.widgets.problem(problem) : null),
            gone: countGone,
        });
        made.place = el("div");
        // above the boxes, never in their place: somebody may be typing. That the WebUI does not answer is said at the window's edge
        made.trouble = el("div");
        made.next = app.widgets.actions();
        made.write = app.widgets.button({
            label: app.t("Write captions"),
            onclick: () => bench.captioner.ask(),
        });
        made.onward = app.widgets.button({
            label: app.t("Go on to the settings"),
            kind: "primary",
            local: true,
            onclick: () => app.open("settings"),
        });
        made.next.fill(made.write, made.onward);
        return made;
    }

    function drawPanel() {
        saveAll();
        parts.rows.clear();
        const card = dataset.chosen();
        if (!card) {
            app.fill(
                parts.panel,
                app.widgets.notice(
                    "info",
                    app.t("Choose the images first."),
                    "",
                    app.widgets.button({
                        label: app.t("Go to the images"),
                        kind: "primary",
                        local: true,
                        onclick: () => app.open("images"),
                    }),
                ),
            );
            return;
        }
        bench.begin({
            pages: parts.pages,
            panel: parts.panel,
            rows: () => parts.rows,
            saveAll: settled,
            showCounts,
            next: nextPage,
        });
        bench.on("selection", () => {
            for (const [key, row] of parts.rows) row.showSelected(bench.isSelected(key));
        });
        Object.assign(parts.pages.query, bench.recall());
        parts.place = el("div");
        parts.list = null;
        app.fill(parts.trouble);
        parts.counts = el("p", { class: "lora-trainer-help", role: "status" });
        parts.findings = el("div");
        parts.trigger = bench.tokens.triggerField();
        app.fill(
            parts.panel,
            el(
                "div",
                { class: "lora-trainer-card lora-trainer-captions-top" },
                el(
                    "div",
                    {},
                    el("h3", {}, card.name),
                    parts.counts,
                    el(
                        "p",
                        { class: "lora-trainer-help" },
                        app.t(
                            "Say what is in each picture, also what should be able to change: clothes, place, light. A box is saved when you leave it; Ctrl+Enter marks it as reviewed and goes on to the next, Escape takes back what was typed.",
                        ),
                    ),
                ),
                parts.trigger.element,
            ),
            bench.toolbar(),
            bench.captioner.panel(),
            bench.check.panel(),
            parts.findings,
            el(
                "div",
                { class: "lora-trainer-bench-sides" },
                bench.tagPanel.panel(),
                el(
                    "div",
                    { class: "lora-trainer-captions-list" },
                    bench.filters(),
                    bench.selectionBar(),
                    parts.trouble,
                    parts.place,
                    parts.pages.bar,
                ),
            ),
            parts.next.element,
        );
        parts.pages.load();
        bench.captioner.look();
        bench.check.look();
    }

    /** Of the rows shown, how many have left the filter by what was written into them. */
    function countGone() {
        const { filter } = parts.pages.query;
        const left = {
            missing: (row) => !row.isEmpty(),
            captioned: (row) => row.isEmpty(),
            unreviewed: (row) => row.isReviewed(),
            reviewed: (row) => !row.isReviewed(),
        }[filter];
        return left ? [...parts.rows.values()].filter(left).length : 0;
    }

    function drawRows(answer, quietly) {
        const items = new Map(answer.items.map((item) => [item.key, item]));
        const kept = new Map();
        // nobody asked for this page: what the visitor has just written stays where it is, though it may no longer fit the filter or the order
        if (quietly)
            for (const [key, row] of parts.rows)
                if (items.has(key) || row.isBusy() || row.isTouched()) kept.set(key, row);
        for (const item of answer.items)
            kept.set(item.key, parts.rows.get(item.key) || bench.row(item));
        // and a row whose text is not saved yet never leaves
        for (const [key, row] of parts.rows) if (!kept.has(key) && row.isBusy()) kept.set(key, row);
        for (const entry of app.unsaved.of(answer.id))
            if (!kept.has(entry.key)) kept.set(entry.key, bench.row(entry.item));
        for (const [key, row] of kept) if (items.has(key)) row.take(items.get(key), quietly);
        parts.rows = kept;
        app.fill(parts.trouble);
        showCounts(answer.captioned, answer.total);
        // what is found of the folder as a whole; the check has its own place
        const found = JSON.stringify(answer.findings);
        if (found !== parts.findings.dataset.shown)
            app.fill(parts.findings, dataset.remarks(answer.findings, parts.pages));
        parts.findings.dataset.shown = found;
        drawList(
            [...kept.values()].map((row) => row.element),
            answer,
        );
        bench.answered(answer);
        catchUp().catch(app.widgets.toastProblem);
    }

    function drawList(elements, answer) {
        if (!elements.length) {
            app.fill(
                parts.place,
                el(
                    "p",
                    { class: "lora-trainer-help lora-trainer-empty" },
                    answer.total
                        ? app.t("No image is like that.")
                        : app.t("There are no images yet."),
                ),
            );
            return;
        }
        if (!parts.list || !parts.list.isConnected)
            app.fill(parts.place, (parts.list = el("div", { class: "lora-trainer-caption-rows" })));
        const wanted = new Set(elements);
        for (const element of [...parts.list.children]) if (!wanted.has(element)) element.remove();
        // the row that is being typed in does not move, the others move around it: the focus, and a word half composed, stay
        const pinned = elements.findIndex((element) => element.contains(document.activeElement));
        arrange(elements.slice(0, Math.max(0, pinned)), 0, elements[pinned]);
        arrange(elements.slice(pinned + 1), pinned + 1, null);
    }

    /** Put elements in this order before another one, from a place in the list on; those that stand right already stay. */
    function arrange(elements, from, before) {
        const first = elements.findIndex(
            (element, at) => parts.list.children[from + at] !== element,
        );
        if (first >= 0)
            for (const element of elements.slice(first)) parts.list.insertBefore(element, before);
    }

    /** Send what a box lost without being left, and what was typed in another dataset and has not arrived. */
    async function catchUp() {
        await Promise.all([...parts.rows.values()].map((row) => row.catchUp()));
        // those of the chosen dataset get a box with its page
        for (const entry of app.unsaved.all())
            if (entry.id !== app.store.get("dataset") && app.unsaved.isWorthSending(entry))
                await sendUnseen(entry);
        return dataset.lookEvery;
    }

    async function sendUnseen(entry) {
        try {
            await app.unsaved.send(entry);
        } catch (problem) {
            if (!(problem instanceof app.Problem)) throw problem;
            if (entry.id !== app.store.get("dataset"))
                app.widgets.toast(
                    app.t("The caption of {name} is not saved: {reason}", {
                        name: entry.item.name,
                        reason: problem.message,
                    }),
                    {
                        severity: "error",
                        hint: app.t("Your text is kept. Choose its dataset again to see it."),
                        seconds: 12,
                    },
                );
        }
    }

    /** Behind the last row: the next page, with its first box to type in. Says whether there is one. */
    async function nextPage() {
        const button = [...parts.pages.bar.querySelectorAll("button")].pop();
        if (!button || button.disabled) return;
        const { offset } = parts.pages.query;
        await saveAll();
        await bench.turn({ offset: offset + parts.pages.size - countGone() });
        const first = parts.place.querySelector("textarea");
        if (first) first.focus();
    }

    function showCounts(captioned, total) {
        const words = app.t("{done} of {count} with a caption", {
            done: app.number(captioned),
            count: app.number(total),
        });
        parts.counts.textContent = words;
        parts.next.say(words);
        // while images lack a caption, writing them comes before going on
        app.widgets.makePrimary(parts.write, captioned < total);
        app.widgets.makePrimary(parts.onward, captioned >= total);
    }

    const saveAll = () =>
        Promise.all(parts ? [...parts.rows.values()].map((row) => row.save()) : []);

    /** Before many captions are changed: what is typed is saved, and it is known what there is. */
    async function settled() {
        const { answer } = parts.pages;
        if (!answer || answer.id !== app.store.get("dataset")) await parts.pages.load();
        await saveAll();
    }

    /** A text as the server will keep it. */
    /** A caption as the server keeps it: of several lines each is a caption of its own. */
    const tidy = (text) =>
        text
            .split(/[\r\n]+/)
            .map((line) => line.split(/\s+/).filter(Boolean).join(" "))
            .filter(Boolean)
            .join("\n");

    const words = (text) =>
        (
            text.match(
                /[\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]|[^\s,\uFF0C\u3002.;:\p{Script=Han}\p{Script=Hiragana}\p{Script=Katakana}]+/gu,
            ) || []
        ).length;

    function hasTrigger(text, word) {
        const escaped = word.replace(/[.*+?^${}()|[\]\\]/g, "\\$&");
        return new RegExp("(?<![\\p{L}\\p{N}_])" + escaped + "(?![\\p{L}\\p{N}_])", "iu").test(
            text,
        );
    }

    app.captions = { tidy, words, hasTrigger };
})((window.loraTrainer = window.loraTrainer || {}));
