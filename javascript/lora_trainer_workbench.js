/* The workbench of the captions: what its parts share. Which images are meant (filter, selection), telling what was changed, undo and the list of changes,
 * bringing captions in and out, and the toolbar above the page.
 *
 * The section "captions" calls begin() with its page; every part that changes captions asks the server and hands the answer to took(). What is chosen and
 * filtered is this browser session's; the captions are the server's. */
(function (app) {
    "use strict";

    const VIEW_KEY = "lora-trainer-captions-view";
    const PICTURES_KEY = "lora-trainer-captions-pictures";
    const FILTERS = ["filter", "text", "lacks", "tag", "without", "finding"];
    const el = (...all) => app.el(...all);
    const bench = (app.workbench = app.workbench || {});
    const dataset = (app.dataset = app.dataset || {});

    /** The page of the section: {pages, panel, rows, saveAll}. */
    bench.page = null;
    bench.edits = null;
    bench.selection = { keys: new Set(), where: null, anchor: null };
    const listeners = {
        selection: new Set(),
        answer: new Set(),
        edits: new Set(),
        revision: new Set(),
    };

    const tell = (what, ...all) => {
        for (const listener of [...listeners[what]]) listener(...all);
    };

    /** Hear of "selection", "answer" (a page was read), "revision" (and something is another than before) and "edits". */
    bench.on = (what, listener) => listeners[what].add(listener);

    /** A new page takes the place of the one before; what listened to that one is forgotten. */
    bench.begin = function (page) {
        for (const all of Object.values(listeners)) all.clear();
        Object.assign(bench, { page, edits: null });
        bench.selection = { keys: new Set(), where: null, anchor: null };
        page.panel.dataset.pictures = bench.picturesAreLarge() ? "large" : "small";
    };

    /** Whether the captions of this page lie in several places: in two tables, or in a table and in text files. */
    bench.hasSeveralSources = function (
        items = ((bench.page && bench.page.pages.answer) || { items: [] }).items,
    ) {
        return (
            new Set(
                items
                    .filter((item) => item.caption_file)
                    .map((item) => (item.source === "text" ? "" : item.caption_file)),
            ).size > 1
        );
    };

    bench.picturesAreLarge = () => app.kept.get(PICTURES_KEY) === "large";

    /** "small" or "large", beside the captions; remembered by this browser. */
    bench.showPictures = function (size) {
        app.kept.set(PICTURES_KEY, size);
        bench.page.panel.dataset.pictures = bench.picturesAreLarge() ? "large" : "small";
        for (const row of bench.page.rows().values()) row.redraw();
    };

    bench.trigger = () => String((app.store.get("settings") || {}).trigger_word || "").trim();

    /** How many tokens of a caption training reads. */
    bench.limit = () => Number((app.store.get("settings") || {}).max_token_length) || 75;

    /** Whether the page was read with a trigger word or a length that are no longer those of the settings. */
    bench.followSettings = function () {
        const { query } = bench.page.pages;
        return query.trigger !== bench.trigger() || query.tokens !== bench.limit();
    };

    const plural = (count) =>
        app.count(count, "{count} caption changed", "{count} captions changed");
    bench.changedWords = plural;

    // --- which images ----------------------------------------------------------------------------------------------------------------

    bench.emptyFilter = () => ({
        filter: "all",
        text: "",
        lacks: "",
        tag: "",
        match: "all",
        without: "",
        finding: "",
    });

    bench.isFiltered = () =>
        FILTERS.some(
            (name) => bench.page.pages.query[name] && bench.page.pages.query[name] !== "all",
        );

    /** The page's filter as the server takes it beside a change. */
    bench.where = function () {
        const { query } = bench.page.pages;
        const where = { trigger: bench.trigger(), tokens: bench.limit() };
        for (const name of FILTERS)
            if (query[name] && query[name] !== "all") where[name] = query[name];
        if (where.tag) where.match = query.match;
        return where;
    };

    /** The tags that the filter asks for ("tag") or does without ("without"), as they are written. */
    bench.filterTags = (name) => bench.words.listed(bench.page.pages.query[name] || "");

    /** One tag more or less in the filter; one that is asked for is not kept away at the same time. */
    bench.toggleTag = function (name, tag) {
        const same = (one) => one.toLowerCase() === tag.toLowerCase();
        const other = name === "tag" ? "without" : "tag";
        const tags = bench.filterTags(name),
            on = tags.some(same);
        return bench.ask({
            [name]: (on ? tags.filter((one) => !same(one)) : [...tags, tag]).join(", "),
            [other]: bench
                .filterTags(other)
                .filter((one) => !same(one))
                .join(", "),
        });
    };

    /** Show other images; a selection of those shown before ends. */
    bench.ask = function (changes) {
        bench.selectNone();
        return bench.turn({ offset: 0, ...changes });
    };

    /** Another page, or another order, of the same images. */
    bench.turn = async function (changes) {
        const { pages } = bench.page;
        await pages.ask({ trigger: bench.trigger(), tokens: bench.limit(), ...changes });
        remember();
    };

    function remember() {
        app.kept.set(
            VIEW_KEY,
            { dataset: app.store.get("dataset"), query: bench.page.pages.query },
            { session: true },
        );
    }

    /** What this browser session looked at last in this dataset. */
    bench.recall = function () {
        const kept = app.kept.get(VIEW_KEY, { session: true });
        const query = kept && kept.dataset === app.store.get("dataset") ? kept.query : {};
        return {
            offset: 0,
            order: "name",
            ...bench.emptyFilter(),
            ...query,
            trigger: bench.trigger(),
            tokens: bench.limit(),
        };
    };

    bench.isSelected = (key) => Boolean(bench.selection.where) || bench.selection.keys.has(key);

    bench.selectedCount = () =>
        bench.selection.where
            ? (bench.page.pages.answer || { matching: 0 }).matching
            : bench.selection.keys.size;

    function shownKeys() {
        return [...bench.page.rows().keys()];
    }

    /** One image more or less; with `range`, everything from the one clicked before. */
    bench.toggle = function (key, chosen, range) {
        const { selection } = bench;
        if (selection.where) Object.assign(selection, { keys: new Set(shownKeys()), where: null });
        const keys = shownKeys();
        const from = keys.indexOf(selection.anchor),
            to = keys.indexOf(key);
        const touched =
            range && from >= 0 ? keys.slice(Math.min(from, to), Math.max(from, to) + 1) : [key];
        for (const each of touched)
            if (chosen) selection.keys.add(each);
            else selection.keys.delete(each);
        selection.anchor = key;
        tell("selection");
    };

    bench.selectPage = function () {
        bench.selection.where = null;
        for (const key of shownKeys()) bench.selection.keys.add(key);
        tell("selection");
    };

    bench.selectMatching = function () {
        bench.selection.where = bench.where();
        tell("selection");
    };

    bench.selectNone = function () {
        bench.selection.keys.clear();
        Object.assign(bench.selection, { where: null, anchor: null });
        tell("selection");
    };

    /** What the selection is to the server. */
    bench.selected = () =>
        bench.selection.where
            ? { where: bench.selection.where }
            : { keys: [...bench.selection.keys] };

    /** Which images a change is for: {element to show, select() for the request, count()}. The selected ones where there are any. */
    bench.targets = function (onchange) {
        const { answer } = bench.page.pages;
        const selected = bench.selectedCount();
        const options = [
            selected
                ? {
                      value: "selected",
                      label: app.t("The selected images ({count})", {
                          count: app.number(selected),
                      }),
                      count: selected,
                  }
                : null,
            bench.isFiltered()
                ? {
                      value: "matching",
                      label: app.t("All that the filter shows ({count})", {
                          count: app.number(answer.matching),
                      }),
                      count: answer.matching,
                  }
                : null,
            {
                value: "all",
                label: app.t("All images ({count})", { count: app.number(answer.total) }),
                count: answer.total,
            },
        ].filter(Boolean);
        const element = app.widgets.select({
            value: options[0].value,
            options,
            label: app.t("Which images"),
            onchange,
        });
        const chosen = () => options.find((option) => option.value === element.value);
        return {
            element,
            count: () => chosen().count,
            select() {
                if (element.value === "all") return { where: {} };
                if (element.value === "matching") return { where: bench.where() };
                return bench.selected();
            },
        };
    };

    // --- what was changed ------------------------------------------------------------------------------------------------------------

    /** What is to be put on a row whose caption is another than before. */
    bench.mark = () => app.t("Changed elsewhere");

    /** The page was read: its counts, and whether somebody changed something. */
    bench.answered = function (answer) {
        if (bench.selection.where) tell("selection");
        const before = bench.revision;
        bench.revision = answer.revision;
        tell("answer", answer);
        if (before === answer.revision) return;
        tell("revision");
        bench.readEdits();
    };

    bench.readEdits = async function () {
        try {
            setEdits((await app.api.get(dataset.path("edits"))).edits);
        } catch (problem) {
            if (!(problem instanceof app.Problem)) throw problem;
        }
    };

    function setEdits(edits) {
        bench.edits = edits;
        tell("edits", edits);
    }

    /** Captions were changed from here: read the page again, and say what was left alone because somebody else had changed it. */
    bench.took = async function (answer, { say = "", undo = true } = {}) {
        if (answer.edits) setEdits(answer.edits);
        if (said) said.remove();
        said =
            say &&
            app.widgets.toast(say, {
                severity: "done",
                seconds: 10,
                action:
                    undo && answer.edits && answer.edits.undo
                        ? { label: app.t("Undo"), onclick: bench.undo }
                        : null,
            });
        if (answer.conflicts && answer.conflicts.length) showConflicts(answer.conflicts);
        bench.mark = () => app.t("Changed");
        try {
            await bench.page.pages.load();
        } finally {
            bench.mark = () => app.t("Changed elsewhere");
        }
        if (app.replan) app.replan();
    };

    function showConflicts(conflicts) {
        app.widgets.dialog({
            title: app.count(
                conflicts.length,
                "{count} caption was left alone",
                "{count} captions were left alone",
            ),
            wide: true,
            body: [
                el(
                    "p",
                    {},
                    app.t(
                        "Someone else changed them meanwhile. Nothing of theirs was overwritten.",
                    ),
                ),
                el(
                    "ul",
                    { class: "lora-trainer-bench-list" },
                    conflicts.map((conflict) =>
                        el(
                            "li",
                            { class: "lora-trainer-card" },
                            el("b", {}, conflict.name),
                            el("p", { class: "lora-trainer-help" }, conflict.message),
                            el("p", {}, conflict.current || app.t("(empty)")),
                        ),
                    ),
                ),
            ],
            actions: [{ label: app.t("Close"), kind: "primary" }],
        });
    }

    /** A change of many captions, at once; resolves when the page shows it. */
    bench.change = async function (select, action) {
        await bench.page.saveAll();
        const answer = await app.api.post(dataset.path("bulk"), { select, action });
        await bench.took(answer, { say: plural(answer.changed) });
        return answer;
    };

    // the last word on a change; the next takes its place
    let said = null;

    bench.undo = () => step("undo");
    bench.redo = () => step("redo");

    async function step(way, id) {
        await bench.page.saveAll();
        const answer = await app.api.post(dataset.path(way), id ? { id } : {});
        await bench.took(answer, { undo: false });
        await dataset.refresh();
        said = app.widgets.toast(
            way === "undo"
                ? app.t("Undone: {title}", { title: answer.title })
                : app.t("Done again: {title}", { title: answer.title }),
            {
                seconds: 8,
                action:
                    way === "undo" ? { label: app.t("Do it again"), onclick: bench.redo } : null,
            },
        );
    }

    async function showHistory() {
        const place = el("div");
        const draw = async () => {
            const { edits, list } = await app.api.get(dataset.path("edits"));
            setEdits(edits);
            app.fill(
                place,
                list.length
                    ? el("ul", { class: "lora-trainer-bench-list" }, list.map(line))
                    : el("p", {}, app.t("Nothing has been changed yet.")),
            );
        };
        const line = (edit) =>
            el(
                "li",
                { class: "lora-trainer-bench-line" },
                el(
                    "div",
                    {},
                    el("b", {}, edit.title),
                    el(
                        "p",
                        { class: "lora-trainer-help" },
                        [
                            edit.count
                                ? app.count(edit.count, "{count} image", "{count} images")
                                : "",
                            app.when(edit.time),
                            edit.undone ? app.t("undone") : "",
                        ]
                            .filter(Boolean)
                            .join(" \u00b7 "),
                    ),
                ),
                edit.undone
                    ? null
                    : app.widgets.button({
                          label: app.t("Undo"),
                          onclick: async () => {
                              await step("undo", edit.id);
                              await draw();
                          },
                      }),
            );
        await draw();
        app.widgets.dialog({
            title: app.t("Changes"),
            body: place,
            wide: true,
            actions: [
                {
                    label: app.t("Do the last undone again"),
                    disabled: !bench.edits.redo,
                    onclick: async () => {
                        await step("redo");
                        await draw();
                        return false;
                    },
                },
                { label: app.t("Close"), kind: "primary" },
            ],
        });
    }

    function showKeys() {
        const keys = [
            ["Tab", app.t("To the next caption; Shift+Tab goes back. What was typed is saved.")],
            ["Page Down, Page Up", app.t("The same, over the end of the page as well")],
            ["Ctrl+Enter", app.t("Mark the caption as reviewed, and go on to the next")],
            ["\u2193 \u2191 Enter", app.t("Choose and take one of the tags that are offered")],
            ["Esc", app.t("Take back what was typed since it was saved")],
            ["Alt+X", app.t("Select the image; Alt+Shift+X selects all from the one before")],
            ["Alt+R", app.t("Reviewed, or not")],
            ["Shift+Enter", app.t("A new line: another caption of the same picture")],
            ["F2", app.t("The caption in fields")],
            [
                "Ctrl+Z, Ctrl+Y",
                app.t("Outside of a caption: undo the last change, and do it again"),
            ],
        ];
        app.widgets.dialog({
            title: app.t("Keys"),
            wide: true,
            body: el(
                "dl",
                { class: "lora-trainer-bench-keys" },
                keys.map(([key, does]) => [el("dt", {}, el("kbd", {}, key)), el("dd", {}, does)]),
            ),
            actions: [{ label: app.t("Close"), kind: "primary" }],
        });
    }

    // --- in and out ------------------------------------------------------------------------------------------------------------------

    function showExport() {
        const link = (as, label, help) =>
            el(
                "li",
                { class: "lora-trainer-bench-line" },
                el("div", {}, el("b", {}, label), el("p", { class: "lora-trainer-help" }, help)),
                el(
                    "a",
                    {
                        class: "lora-trainer-button",
                        href: app.address(dataset.path("export"), { as }),
                        download: "",
                    },
                    app.t("Download"),
                ),
            );
        app.widgets.dialog({
            title: app.t("Export captions"),
            body: el(
                "ul",
                { class: "lora-trainer-bench-list" },
                link(
                    "csv",
                    app.t("Table (CSV)"),
                    app.t("For Excel and other spreadsheets; it can be brought in again."),
                ),
                link(
                    "txt",
                    app.t("Text files (ZIP)"),
                    app.t("One .txt for each image, as other trainers read them."),
                ),
                link(
                    "jsonl",
                    app.t("JSON lines"),
                    app.t("metadata.jsonl, as Hugging Face datasets have it."),
                ),
            ),
            actions: [{ label: app.t("Close"), kind: "primary" }],
        });
    }

    function showImport() {
        const files = el("input", {
            type: "file",
            class: "lora-trainer-input",
            accept: ".csv,.tsv,.jsonl,.ndjson,.json,.txt,.caption,.tags,.cap,.zip",
            multiple: true,
        });
        const replace = el("input", {
            type: "checkbox",
            class: "lora-trainer-checkbox",
            checked: true,
        });
        const place = el("div", { role: "status" });
        const bring = async () => {
            let captions = 0;
            const skipped = [];
            for (const file of files.files) {
                const answer = await app.api.upload(
                    dataset.path("upload"),
                    file,
                    null,
                    replace.checked ? { captions: "replace" } : {},
                );
                captions += answer.captions;
                skipped.push(...answer.skipped);
            }
            app.fill(
                place,
                app.widgets.notice(
                    skipped.length ? "warning" : "done",
                    app.count(captions, "{count} caption written", "{count} captions written"),
                    "",
                ),
                bench.notes(skipped.map((one) => app.sentences(one.message, one.hint))),
            );
            await bench.took({});
            return false;
        };
        app.widgets.dialog({
            title: app.t("Import captions"),
            body: el(
                "div",
                { class: "lora-trainer-bench-form" },
                app.widgets.labelled(app.t("Files"), files, {
                    help: app.t(
                        "A table (.csv, .jsonl) with the images' names, .txt files named like the images, or a .zip of them.",
                    ),
                }),
                flag(replace, app.t("Replace captions that are there already")),
                place,
            ),
            actions: [
                { label: app.t("Close") },
                { label: app.t("Import"), kind: "primary", onclick: bring },
            ],
        });
    }

    /** Remarks on several files, folded together when there are many. */
    bench.notes = function (notes) {
        if (!notes.length) return null;
        return el(
            "details",
            { open: notes.length <= 3 },
            el("summary", {}, app.count(notes.length, "{count} note", "{count} notes")),
            el(
                "ul",
                { class: "lora-trainer-bench-list lora-trainer-bench-notes" },
                notes.map((note) => el("li", {}, note)),
            ),
        );
    };

    /** A box to tick with its words behind it. */
    function flag(input, label, help = "") {
        input.id = input.id || app.id("flag");
        return el(
            "div",
            { class: "lora-trainer-bench-flag" },
            input,
            el("label", { for: input.id }, label),
            help ? el("p", { class: "lora-trainer-help" }, help) : null,
        );
    }
    bench.flag = flag;

    bench.checkbox = (checked = false, onchange = null) =>
        el("input", {
            type: "checkbox",
            class: "lora-trainer-checkbox",
            checked,
            onchange: onchange && ((event) => onchange(event.target.checked, event)),
        });

    /** A number to type, within bounds. */
    bench.number = function ({ value, minimum, maximum, step = 1, oninput }) {
        const input = el("input", {
            type: "number",
            class: "lora-trainer-input",
            min: minimum,
            max: maximum,
            step,
            oninput: oninput && (() => oninput(Number(input.value))),
        });
        input.value = String(value);
        input.addEventListener("keydown", (event) => event.stopPropagation());
        return input;
    };

    // --- toolbar ---------------------------------------------------------------------------------------------------------------------

    /** A button with a list of further actions below it: [{label, onclick}]. Escape and a click elsewhere close it; arrow keys move in it. */
    bench.menu = function (label, items) {
        const list = el(
            "div",
            { class: "lora-trainer-bench-menu-list", role: "menu", hidden: true },
            items.map((item) =>
                el(
                    "button",
                    {
                        type: "button",
                        role: "menuitem",
                        tabindex: "-1",
                        onclick: () => choose(item),
                    },
                    item.label,
                ),
            ),
        );
        const button = el(
            "button",
            {
                type: "button",
                class: "lora-trainer-button lora-trainer-secondary lora-trainer-bench-menu-button",
                "aria-haspopup": "menu",
                "aria-expanded": "false",
            },
            label,
            el("span", { "aria-hidden": "true" }, " \u25be"),
        );
        const entries = [...list.children];
        const show = (open) => {
            list.hidden = !open;
            button.setAttribute("aria-expanded", String(open));
        };
        const away = (event) => {
            if (!element.contains(event.target)) leave();
        };
        const leave = () => {
            show(false);
            document.removeEventListener("pointerdown", away);
        };
        async function choose(item) {
            leave();
            button.focus();
            try {
                await item.onclick();
            } catch (problem) {
                app.widgets.toastProblem(problem);
            }
        }
        button.addEventListener("click", () => {
            if (!list.hidden) {
                leave();
                return;
            }
            show(true);
            entries[0].focus();
            document.addEventListener("pointerdown", away);
        });
        const element = el(
            "div",
            {
                class: "lora-trainer-bench-menu",
                onfocusout: (event) => {
                    if (event.relatedTarget && !element.contains(event.relatedTarget)) leave();
                },
                onkeydown: (event) => {
                    const at = entries.indexOf(document.activeElement);
                    const to = {
                        ArrowDown: (at + 1) % entries.length,
                        ArrowUp: (at - 1 + entries.length) % entries.length,
                        Home: 0,
                        End: entries.length - 1,
                    }[event.key];
                    if (event.key === "Escape" && !list.hidden) {
                        leave();
                        button.focus();
                    } else if (to !== undefined && !list.hidden) entries[to].focus();
                    else return;
                    event.preventDefault();
                    event.stopPropagation();
                },
            },
            button,
            list,
        );
        return element;
    };

    bench.toolbar = function () {
        const undo = app.widgets.button({ label: app.t("Undo"), onclick: bench.undo });
        undo.classList.add("lora-trainer-bench-undo");
        const draw = (edits) => {
            const last = edits && edits.undo;
            undo.disabled = !last;
            undo.textContent = last ? app.t("Undo: {title}", { title: last.title }) : app.t("Undo");
            undo.title = last ? undo.textContent : "";
        };
        bench.on("edits", draw);
        draw(null);
        const tags = app.widgets.button({
            label: app.t("Tags"),
            title: app.t("How often each tag is used, in a column beside the images"),
            onclick: () => bench.tagPanel.toggle(),
        });
        bench.tagPanel.toggler = tags;
        return el(
            "div",
            {
                class: "lora-trainer-row lora-trainer-bench-toolbar",
                role: "toolbar",
                "aria-label": app.t("Captions"),
            },
            app.widgets.button({ label: app.t("Change many"), onclick: () => bench.bulk.open() }),
            app.widgets.button({
                label: app.t("Check images"),
                onclick: () => bench.check.start(),
            }),
            tags,
            bench.menu(app.t("More"), [
                { label: app.t("Template and vocabulary"), onclick: () => bench.words.open() },
                { label: app.t("What training will read"), onclick: () => bench.bulk.shuffle() },
                { label: app.t("Crop into a new dataset"), onclick: () => bench.crop.open() },
                { label: app.t("Import captions"), onclick: showImport },
                { label: app.t("Export captions"), onclick: showExport },
                { label: app.t("Changes"), onclick: showHistory },
                { label: app.t("Keys"), onclick: showKeys },
            ]),
            undo,
        );
    };

    /** The line above the rows that says how many are selected. */
    bench.selectionBar = function () {
        const words = el("span", { role: "status" });
        const page = bench.checkbox(false, (chosen) =>
            chosen ? bench.selectPage() : bench.selectNone(),
        );
        page.id = app.id("select_page");
        const matching = app.widgets.button({ label: "", onclick: bench.selectMatching });
        const none = app.widgets.button({ label: app.t("Select none"), onclick: bench.selectNone });
        const mark = app.widgets.button({
            label: app.t("Mark as reviewed"),
            onclick: () => review(true),
        });
        const unmark = app.widgets.button({
            label: app.t("Mark as not reviewed"),
            onclick: () => review(false),
        });
        const leave = app.widgets.button({ label: app.t("Remove images"), onclick: leaveOut });
        const change = app.widgets.button({
            label: app.t("Change many"),
            onclick: () => bench.bulk.open(),
        });
        let passed = false;
        const draw = () => {
            const { answer } = bench.page.pages;
            const count = bench.selectedCount();
            // who selects far down the page does not have to scroll back; the toolbar is up there then, too
            bar.classList.toggle("lora-trainer-bench-floating", passed && count > 0);
            place.style.height =
                passed && count > 0 ? Math.max(height, bar.offsetHeight) + "px" : "";
            change.hidden = !(passed && count);
            const keys = shownKeys();
            page.checked = keys.length > 0 && keys.every(bench.isSelected);
            page.indeterminate = !page.checked && count > 0;
            words.textContent = count
                ? app.t("{count} selected", { count: app.number(count) })
                : "";
            for (const button of [none, mark, unmark, leave]) button.hidden = !count;
            const more = answer && answer.matching > keys.length;
            matching.hidden = !more || Boolean(bench.selection.where) || !count;
            if (more)
                matching.textContent = app.t("Select all {count}", {
                    count: app.number(answer.matching),
                });
        };
        bench.on("selection", draw);
        bench.on("answer", draw);
        const bar = el(
            "div",
            { class: "lora-trainer-row lora-trainer-bench-selection" },
            el(
                "div",
                { class: "lora-trainer-bench-flag" },
                page,
                el("label", { for: page.id }, app.t("Select this page")),
            ),
            words,
            change,
            matching,
            none,
            mark,
            unmark,
            leave,
            bench.chips,
        );
        const place = el("div", { class: "lora-trainer-bench-selection-place" }, bar);
        let height = 0;
        // everything below counts as seen: what leaves has left at the top, however far the page was scrolled at once
        new IntersectionObserver(
            (all) => {
                const seen = all[all.length - 1];
                if (!place.isConnected || !place.offsetParent) return;
                passed = !seen.isIntersecting;
                if (!passed) height = seen.boundingClientRect.height;
                draw();
            },
            { rootMargin: "0px 0px 1000000px 0px" },
        ).observe(place);
        draw();
        return place;
    };

    async function review(reviewed) {
        await bench.page.saveAll();
        const answer = await app.api.post(dataset.path("reviewed"), {
            select: bench.selected(),
            reviewed,
        });
        await bench.took(answer, {
            say: reviewed
                ? app.count(
                      answer.count,
                      "{count} caption marked as reviewed",
                      "{count} captions marked as reviewed",
                  )
                : app.count(
                      answer.count,
                      "{count} caption marked as not reviewed",
                      "{count} captions marked as not reviewed",
                  ),
            undo: false,
        });
    }

    async function leaveOut() {
        await bench.page.saveAll();
        const answer = await app.api.post(dataset.path("remove"), { select: bench.selected() });
        bench.selectNone();
        await bench.took(answer, {
            say: app.count(answer.changed, "{count} image removed", "{count} images removed"),
        });
        await dataset.refresh();
    }

    // Ctrl+Z and Ctrl+Shift+Z (or Ctrl+Y) anywhere but in a box, where they take back what is typed
    document.addEventListener("keydown", (event) => {
        if (
            !(event.ctrlKey || event.metaKey) ||
            event.altKey ||
            event.isComposing ||
            !bench.page ||
            app.current() !== "captions" ||
            !bench.page.panel.offsetParent
        )
            return;
        const key = event.key.toLowerCase();
        const way = key === "z" ? (event.shiftKey ? "redo" : "undo") : key === "y" ? "redo" : "";
        const { target } = event;
        const types =
            target.matches &&
            target.matches(
                "input:not([type=checkbox]):not([type=radio]), textarea, select, [contenteditable]",
            );
        if (
            !way ||
            types ||
            document.querySelector("dialog[open]") ||
            !bench.edits ||
            !bench.edits[way]
        )
            return;
        event.preventDefault();
        bench[way]().catch(app.widgets.toastProblem);
    });
})((window.loraTrainer = window.loraTrainer || {}));
