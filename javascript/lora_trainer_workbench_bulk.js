/* "Change many": one change for many captions, seen before it is made. What is typed is tried on the server at once; what the button applies is exactly
 * what was shown. Also "What training will read": the same caption as shuffling, dropping and the trigger word make it. */
(function (app) {
    "use strict";

    const WAIT = 300;
    const MOST_WORDS = 400;
    const el = (...all) => app.el(...all);
    const bench = (app.workbench = app.workbench || {});
    const dataset = (app.dataset = app.dataset || {});

    // --- before and after ------------------------------------------------------------------------------------------------------------

    /** Words, spaces and punctuation one by one; Chinese characters too. */
    const pieces = (text) =>
        text.match(/[\p{Script=Han}]|[\p{L}\p{N}_'\u2019-]+|\s+|[^\p{L}\p{N}\s]/gu) || [];

    /** Two texts -> [[kind, text]]: kind "same", "gone" or "new", in the order they are read. */
    function difference(before, after) {
        const one = pieces(before),
            two = pieces(after);
        // what they begin and end with alike needs no search: mostly little is left
        const shorter = Math.min(one.length, two.length);
        let start = 0,
            end = 0;
        while (start < shorter && one[start] === two[start]) start += 1;
        while (end < shorter - start && one[one.length - 1 - end] === two[two.length - 1 - end])
            end += 1;
        const first = one.slice(0, start).join(""),
            last = one.slice(one.length - end).join("");
        const found = first ? [["same", first]] : [];
        middle(one.slice(start, one.length - end), two.slice(start, two.length - end), found);
        if (last) found.push(["same", last]);
        return found;
    }

    /** What two rows of pieces do not begin or end with alike, added to `found`. */
    function middle(one, two, found) {
        if (one.length > MOST_WORDS || two.length > MOST_WORDS) {
            found.push(
                ...[
                    ["gone", one.join("")],
                    ["new", two.join("")],
                ].filter(([, text]) => text),
            );
            return;
        }
        // the longest common row of pieces, from the end
        const length = Array.from(
            { length: one.length + 1 },
            () => new Uint16Array(two.length + 1),
        );
        for (let i = one.length - 1; i >= 0; i -= 1) {
            for (let j = two.length - 1; j >= 0; j -= 1)
                length[i][j] =
                    one[i] === two[j]
                        ? length[i + 1][j + 1] + 1
                        : Math.max(length[i + 1][j], length[i][j + 1]);
        }
        const add = (kind, text) => {
            const last = found[found.length - 1];
            if (last && last[0] === kind) last[1] += text;
            else found.push([kind, text]);
        };
        let i = 0,
            j = 0;
        while (i < one.length || j < two.length) {
            if (i < one.length && j < two.length && one[i] === two[j]) {
                add("same", one[i]);
                i += 1;
                j += 1;
            } else if (
                i < one.length &&
                (j === two.length || length[i + 1][j] >= length[i][j + 1])
            ) {
                add("gone", one[i]);
                i += 1;
            } else {
                add("new", two[j]);
                j += 1;
            }
        }
    }

    const shownDifference = (before, after) =>
        el(
            "p",
            { class: "lora-trainer-bench-difference" },
            difference(before, after).map(([kind, text]) =>
                kind === "same" ? text : el(kind === "gone" ? "del" : "ins", {}, text),
            ),
        );

    // --- the kinds of change ---------------------------------------------------------------------------------------------------------

    /** [id, label, fields of the form, action from their values or null while something is missing]. A field is [key, kind, label, start, help or choices]; in
     * those of the kinds "tags" and "tag" the dataset's tags are offered. */
    const kinds = () => [
        [
            "add",
            app.t("Add words"),
            [
                [
                    "text",
                    "tags",
                    app.t("Words"),
                    "",
                    app.t(
                        "Several with commas between. What a caption has already is not added again.",
                    ),
                ],
                [
                    "at",
                    "choice",
                    app.t("Where"),
                    "end",
                    [
                        ["end", app.t("At the end")],
                        ["front", app.t("At the front")],
                        ["after-first", app.t("After the first tag")],
                    ],
                ],
            ],
            ({ text, at }) => text.trim() && { do: "add", text, at },
        ],
        [
            "remove",
            app.t("Remove tags"),
            [
                [
                    "tags",
                    "tags",
                    app.t("Tags"),
                    "",
                    app.t("Several with commas between. A tag is what stands between two commas."),
                ],
            ],
            ({ tags }) =>
                tags.trim() && {
                    do: "remove",
                    tags: tags
                        .split(/[,\uff0c]/)
                        .map((tag) => tag.trim())
                        .filter(Boolean),
                },
        ],
        [
            "replace",
            app.t("Replace text"),
            [
                ["find", "text", app.t("Find"), ""],
                [
                    "replace",
                    "text",
                    app.t("Replace with"),
                    "",
                    app.t("Empty: what was found is removed."),
                ],
                ["whole", "flag", app.t("Whole words only"), true],
                ["case", "flag", app.t("Capital letters matter"), false],
                [
                    "regex",
                    "flag",
                    app.t("Regular expression"),
                    false,
                    app.t("For example (\\w+) dress, replaced with \\1 gown."),
                ],
            ],
            ({ find, replace, whole, case: letters, regex }) =>
                find && {
                    do: "replace",
                    find,
                    replace,
                    regex,
                    case: letters,
                    whole: whole && !regex,
                },
        ],
        [
            "replace-tag",
            app.t("Rename a tag"),
            [
                ["tag", "tag", app.t("Tag"), ""],
                ["replace", "tag", app.t("New name"), ""],
            ],
            ({ tag, replace }) => tag.trim() && { do: "replace-tag", tag, replace },
        ],
        [
            "trigger",
            app.t("Set the trigger word"),
            [
                [
                    "word",
                    "text",
                    app.t("Trigger word"),
                    bench.trigger(),
                    app.t("It is put in front where it is missing."),
                ],
                [
                    "instead_of",
                    "text",
                    app.t("Instead of"),
                    "",
                    app.t("An older trigger word that is to go."),
                ],
            ],
            ({ word, instead_of }) => word.trim() && { do: "trigger", word, instead_of },
        ],
        [
            "sort",
            app.t("Sort tags"),
            [
                [
                    "by",
                    "choice",
                    app.t("Order"),
                    "frequency",
                    [
                        ["frequency", app.t("The most frequent first")],
                        ["name", app.t("By name")],
                    ],
                ],
                [
                    "keep_first",
                    "number",
                    app.t("Tags at the front that stay"),
                    0,
                    app.t("For example 1 for the trigger word."),
                ],
            ],
            ({ by, keep_first }) => ({ do: "sort", by, keep_first: Number(keep_first) || 0 }),
        ],
        ["dedupe", app.t("Remove repeated tags"), [], () => ({ do: "dedupe" })],
        ["tidy", app.t("Tidy spaces and commas"), [], () => ({ do: "tidy" })],
        [
            "set",
            app.t("One caption for all"),
            [["caption", "text", app.t("Caption"), ""]],
            ({ caption }) => caption.trim() && { do: "set", caption },
        ],
        ["clear", app.t("Empty the captions"), [], () => ({ do: "clear" })],
    ];

    function entry([key, kind, label, start, more], values, hear) {
        const take = (value) => {
            values[key] = value;
            hear();
        };
        values[key] = start;
        if (kind === "flag") return bench.flag(bench.checkbox(start, take), label, more || "");
        if (kind === "choice")
            return app.widgets.labelled(
                label,
                app.widgets.select({
                    value: start,
                    options: more.map(([value, words]) => ({ value, label: words })),
                    onchange: take,
                }),
            );
        if (kind === "number")
            return app.widgets.labelled(
                label,
                bench.number({ value: start, minimum: 0, maximum: 100, oninput: take }),
                { help: more },
            );
        const box = app.widgets.text({ value: start, maxlength: 2000, oninput: take });
        const field = app.widgets.labelled(label, box, { help: more || "" });
        return kind === "text"
            ? field
            : bench.completed(field, box, () => take(box.value), { single: kind === "tag" });
    }

    // --- the dialog ------------------------------------------------------------------------------------------------------------------

    async function open(kind = "add", given = {}) {
        await bench.page.saveAll();
        let plan = null,
            values = {},
            timer = 0,
            serial = 0,
            chosen = kind;
        const fields = el("div", { class: "lora-trainer-bench-form" });
        const words = el("p", { role: "status" });
        const trouble = el("div");
        const samples = el("ul", { class: "lora-trainer-bench-list lora-trainer-bench-samples" });
        const targets = bench.targets(() => soon());
        const what = app.widgets.select({
            value: kind,
            label: app.t("Change"),
            options: kinds().map(([value, label]) => ({ value, label })),
            onchange: (id) => {
                chosen = id;
                drawFields({});
            },
        });

        function drawFields(start) {
            values = {};
            const [, , wanted] = kinds().find(([id]) => id === chosen);
            app.fill(
                fields,
                wanted.map(([key, type, label, usual, more]) =>
                    entry(
                        [key, type, label, key in start ? start[key] : usual, more],
                        values,
                        soon,
                    ),
                ),
            );
            soon();
        }

        function soon() {
            clearTimeout(timer);
            serial += 1;
            setPlan(null);
            timer = setTimeout(() => look().catch(app.widgets.toastProblem), WAIT);
        }

        function setPlan(found) {
            plan = found;
            apply.disabled = !found || !found.changing;
            apply.textContent =
                found && found.changing
                    ? app.count(found.changing, "Change {count} caption", "Change {count} captions")
                    : app.t("Change");
        }

        async function look() {
            const mine = serial;
            const action = kinds().find(([id]) => id === chosen)[3](values);
            app.fill(trouble);
            if (!action) {
                words.textContent = app.t("What will change is shown here.");
                app.fill(samples);
                return;
            }
            try {
                const found = await app.api.post(dataset.path("bulk/preview"), {
                    select: targets.select(),
                    action,
                });
                if (mine !== serial) return;
                setPlan(found);
                words.textContent = found.changing
                    ? app.t("{changing} of {count} captions will change.", {
                          changing: app.number(found.changing),
                          count: app.number(found.selected),
                      })
                    : app.t("No caption will change.");
                app.fill(trouble);
                app.fill(
                    samples,
                    found.samples.map((sample) =>
                        el(
                            "li",
                            {},
                            el("span", { class: "lora-trainer-help" }, sample.name),
                            shownDifference(sample.before, sample.after),
                        ),
                    ),
                    found.changing > found.samples.length
                        ? el(
                              "li",
                              { class: "lora-trainer-help" },
                              app.t("and {count} more", {
                                  count: app.number(found.changing - found.samples.length),
                              }),
                          )
                        : null,
                );
            } catch (problem) {
                if (!(problem instanceof app.Problem)) throw problem;
                if (mine !== serial) return;
                words.textContent = "";
                app.fill(samples);
                app.fill(trouble, app.widgets.problem(problem));
            }
        }

        async function change() {
            let answer;
            try {
                answer = await app.api.post(dataset.path("bulk"), { plan: plan.plan });
            } catch (problem) {
                if (problem.status !== 409 && problem.status !== 404) throw problem;
                // the server was started again meanwhile: show it anew, and ask again
                soon();
                app.fill(trouble, app.widgets.problem(problem));
                return false;
            }
            await bench.took(answer, { say: bench.changedWords(answer.changed) });
            return true;
        }

        const dialog = app.widgets.dialog({
            title: app.t("Change many captions"),
            wide: true,
            body: el(
                "div",
                { class: "lora-trainer-bench-two" },
                el(
                    "div",
                    { class: "lora-trainer-bench-form" },
                    app.widgets.labelled(app.t("Change"), what),
                    app.widgets.labelled(app.t("In"), targets.element),
                    fields,
                ),
                el("div", { class: "lora-trainer-bench-preview" }, words, trouble, samples),
            ),
            actions: [
                { label: app.t("Cancel") },
                { label: app.t("Change"), kind: "primary", onclick: change },
            ],
        });
        const apply = dialog.element.querySelector(
            ".lora-trainer-dialog-actions .lora-trainer-primary",
        );
        drawFields(given);
        const first = fields.querySelector("input, select") || what;
        first.focus();
    }

    // --- what training will read -----------------------------------------------------------------------------------------------------

    async function shuffle() {
        await bench.page.saveAll();
        const settings = app.store.get("settings") || {};
        const wish = {
            shuffle: Boolean(settings.shuffle_caption),
            keep_tokens: Number(settings.keep_tokens) || 0,
            dropout: Number(settings.caption_dropout) || 0,
            seed: 0,
        };
        const chosen = [...bench.selection.keys];
        const keys = (chosen.length ? chosen : [...bench.page.rows().keys()]).slice(0, 5);
        const place = el("div", { "aria-live": "polite" });
        let timer = 0,
            serial = 0;

        async function look() {
            const mine = (serial += 1);
            const { samples } = await app.api.post(dataset.path("shuffle"), {
                keys,
                trigger: bench.trigger(),
                ...wish,
            });
            if (mine !== serial) return;
            app.fill(
                place,
                samples.map((sample) =>
                    el(
                        "section",
                        { class: "lora-trainer-card" },
                        el("h4", {}, sample.name),
                        el(
                            "ol",
                            { class: "lora-trainer-bench-trained" },
                            sample.trained.map((text) =>
                                el("li", {}, text || el("i", {}, app.t("(no caption this time)"))),
                            ),
                        ),
                    ),
                ),
            );
        }
        const soon = (changes) => {
            Object.assign(wish, changes);
            clearTimeout(timer);
            timer = setTimeout(() => look().catch(app.widgets.toastProblem), WAIT);
        };

        app.widgets.dialog({
            title: app.t("What training will read"),
            wide: true,
            body: el(
                "div",
                { class: "lora-trainer-bench-two" },
                el(
                    "div",
                    { class: "lora-trainer-bench-form" },
                    el(
                        "p",
                        { class: "lora-trainer-help" },
                        app.t(
                            "As the settings are now. Trying other values here changes nothing in them.",
                        ),
                    ),
                    bench.flag(
                        bench.checkbox(wish.shuffle, (value) => soon({ shuffle: value })),
                        app.t("Shuffle the tags"),
                    ),
                    app.widgets.labelled(
                        app.t("Tags at the front that stay"),
                        bench.number({
                            value: wish.keep_tokens,
                            minimum: 0,
                            maximum: 100,
                            oninput: (value) => soon({ keep_tokens: value || 0 }),
                        }),
                        { help: app.t("The trigger word counts as one.") },
                    ),
                    app.widgets.labelled(
                        app.t("Share of images without a caption"),
                        bench.number({
                            value: wish.dropout,
                            minimum: 0,
                            maximum: 1,
                            step: 0.05,
                            oninput: (value) => soon({ dropout: value || 0 }),
                        }),
                    ),
                    app.widgets.button({
                        label: app.t("Draw again"),
                        onclick: () => {
                            wish.seed += 1;
                            return look();
                        },
                    }),
                ),
                place,
            ),
            actions: [{ label: app.t("Close"), kind: "primary" }],
        });
        await look();
    }

    bench.bulk = { open, shuffle, difference, shownDifference };
})((window.loraTrainer = window.loraTrainer || {}));
