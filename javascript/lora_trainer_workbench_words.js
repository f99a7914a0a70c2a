/* Captions built alike: the fields of a caption (subject, action, ... colour) for one image after the other, and the dataset's vocabulary: the opening
 * phrase, the preferred words, which captions depart from them, and the mend. */
(function (app) {
    "use strict";

    const WAIT = 300;
    const MOST_SHOWN = 100;
    const el = (...all) => app.el(...all);
    const bench = (app.workbench = app.workbench || {});
    const dataset = (app.dataset = app.dataset || {});

    const listed = (text) =>
        text
            .split(/[,\uff0c\n]/)
            .map((word) => word.trim())
            .filter(Boolean);

    // --- one caption in fields -------------------------------------------------------------------------------------------------------

    /** A dialog with the fields of a row's caption; "Save and next" goes on through the page. */
    async function compose(row) {
        await bench.page.saveAll();
        const [template, vocabulary] = await Promise.all([
            app.api.get(dataset.path("template")),
            app.api.get(dataset.path("vocabulary"), { trigger: bench.trigger() }),
        ]);
        const rows = [...bench.page.rows().values()];
        let at = rows.findIndex((one) => one.item().key === row.item().key),
            timer = 0,
            serial = 0,
            caption = "",
            composing = null,
            was = "";
        const picture = el("div", { class: "lora-trainer-bench-picture" });
        const shown = el("p", { class: "lora-trainer-bench-composed", role: "status" });
        const trouble = el("div");
        const ordered = template.order
            .map((name) => template.fields.find((field) => field.name === name))
            .filter(Boolean);
        const inputs = new Map(
            ordered.map((field) => [
                field.name,
                app.widgets.text({ placeholder: field.example, maxlength: 500, oninput: soon }),
            ]),
        );
        const values = () =>
            Object.fromEntries([...inputs].map(([name, input]) => [name, input.value]));

        const fieldRow = (field) => {
            const input = inputs.get(field.name);
            const preferred = (vocabulary.fields[field.name] || []).slice(0, 12);
            return el(
                "div",
                { class: "lora-trainer-field" },
                app.widgets.labelled(field.label, input),
                preferred.length
                    ? el(
                          "div",
                          { class: "lora-trainer-bench-suggestions" },
                          preferred.map((word) =>
                              bench.link(
                                  word,
                                  () => {
                                      const words = listed(input.value);
                                      if (!words.includes(word))
                                          input.value = [...words, word].join(", ");
                                      input.focus();
                                      return soon();
                                  },
                                  { "aria-label": app.t("Add {word}", { word }) },
                              ),
                          ),
                      )
                    : null,
            );
        };

        function soon() {
            clearTimeout(timer);
            composing = new Promise((resolve) => {
                timer = setTimeout(resolve, WAIT);
            })
                .then(put)
                .catch(fail);
        }

        const fail = (problem) => {
            if (!(problem instanceof app.Problem)) throw problem;
            app.fill(trouble, app.widgets.problem(problem));
        };

        async function put() {
            const mine = (serial += 1);
            const answer = await app.api.post(dataset.path("compose"), { fields: values() });
            if (mine !== serial) return;
            caption = answer.caption;
            app.fill(trouble);
            app.fill(
                shown,
                caption === was
                    ? caption || app.t("(empty)")
                    : bench.bulk.shownDifference(was, caption),
            );
        }

        async function show(to) {
            const next = (to + rows.length) % rows.length;
            const item = rows[next].item(),
                text = rows[next].text();
            const { fields } = await app.api.post(dataset.path("split"), { caption: text });
            clearTimeout(timer);
            serial += 1;
            at = next;
            composing = null;
            was = caption = text;
            app.fill(
                picture,
                dataset.thumbnail({ thumbnail: item.picture }),
                el(
                    "p",
                    { class: "lora-trainer-help" },
                    app.t("{label} ({number} of {count})", {
                        label: item.name,
                        number: at + 1,
                        count: rows.length,
                    }),
                ),
            );
            app.fill(shown, was || app.t("(empty)"));
            for (const [name, input] of inputs) input.value = fields[name] || "";
            inputs.values().next().value.focus();
        }

        async function save() {
            // what was typed last is composed first
            clearTimeout(timer);
            if (composing) {
                await put();
                composing = null;
            }
            if (caption !== was) await rows[at].write(caption);
        }

        await show(at);
        const dialog = app.widgets.dialog({
            title: app.t("Fields of a caption"),
            wide: true,
            onclose: () => clearTimeout(timer),
            body: el(
                "div",
                { class: "lora-trainer-bench-two lora-trainer-bench-compose" },
                picture,
                el(
                    "div",
                    { class: "lora-trainer-bench-form" },
                    el("div", { class: "lora-trainer-bench-fields" }, ordered.map(fieldRow)),
                    shown,
                    trouble,
                ),
            ),
            actions: [
                {
                    label: app.t("Previous"),
                    onclick: async () => {
                        await save();
                        await show(at - 1);
                        return false;
                    },
                },
                { label: app.t("Save"), onclick: save },
                {
                    label: app.t("Save and next"),
                    kind: "primary",
                    onclick: async () => {
                        await save();
                        await show(at + 1);
                        return false;
                    },
                },
            ],
        });
        dialog.element.addEventListener("keydown", (event) => {
            if (event.key !== "Enter" || !(event.ctrlKey || event.metaKey)) return;
            event.preventDefault();
            dialog.element
                .querySelector(".lora-trainer-dialog-actions .lora-trainer-primary")
                .click();
        });
        inputs.values().next().value.focus();
    }

    // --- the vocabulary --------------------------------------------------------------------------------------------------------------

    async function open() {
        await bench.page.saveAll();
        const template = await app.api.get(dataset.path("template"));
        let { order } = template;
        let vocabulary = await app.api.get(dataset.path("vocabulary"), {
            trigger: bench.trigger(),
        });
        const opening = app.widgets.text({
            value: vocabulary.opening,
            maxlength: 300,
            placeholder: app.t("sci-fi laboratory"),
        });
        const inputs = new Map(
            template.fields.map((field) => [
                field.name,
                app.widgets.text({
                    value: (vocabulary.fields[field.name] || []).join(", "),
                    rows: 2,
                    placeholder: field.example,
                }),
            ]),
        );
        const list = el("ol", { class: "lora-trainer-bench-order" });
        const departures = el("div", { class: "lora-trainer-bench-form", role: "status" });

        function drawOrder(focus) {
            app.fill(
                list,
                order.map((name, at) => {
                    const field = template.fields.find((one) => one.name === name);
                    return el(
                        "li",
                        { dataset: { field: name } },
                        el(
                            "div",
                            { class: "lora-trainer-row lora-trainer-between" },
                            el(
                                "label",
                                {
                                    for:
                                        inputs.get(name).id ||
                                        (inputs.get(name).id = app.id("words")),
                                },
                                field.label,
                            ),
                            el(
                                "span",
                                { class: "lora-trainer-row" },
                                mover(
                                    name,
                                    at,
                                    -1,
                                    app.t("Up"),
                                    app.t("Move {field} up", { field: field.label }),
                                ),
                                mover(
                                    name,
                                    at,
                                    1,
                                    app.t("Down"),
                                    app.t("Move {field} down", { field: field.label }),
                                ),
                            ),
                        ),
                        inputs.get(name),
                    );
                }),
            );
            if (focus)
                list.querySelector(
                    '[data-field="' + focus.name + '"] [data-way="' + focus.way + '"]',
                ).focus();
        }

        const mover = (name, at, way, words, label) =>
            bench.link(
                words,
                async () => {
                    const next = [...order];
                    [next[at], next[at + way]] = [next[at + way], next[at]];
                    await app.api.post(dataset.path("template"), { order: next });
                    order = next;
                    drawOrder({ name, way });
                    await bench.readEdits();
                },
                {
                    "aria-label": label,
                    "data-way": String(way),
                    disabled: at + way < 0 || at + way >= order.length,
                },
            );

        async function save() {
            const fields = Object.fromEntries(
                [...inputs]
                    .map(([name, input]) => [name, listed(input.value)])
                    .filter(([, words]) => words.length),
            );
            await app.api.post(dataset.path("vocabulary"), { opening: opening.value, fields });
            await look();
            await bench.page.pages.load();
            return false;
        }

        async function look() {
            vocabulary = await app.api.get(dataset.path("vocabulary"), {
                trigger: bench.trigger(),
            });
            drawDepartures();
        }

        function drawDepartures() {
            const { count, list: found } = vocabulary.departures;
            if (!vocabulary.exists) {
                app.fill(
                    departures,
                    el(
                        "p",
                        { class: "lora-trainer-help" },
                        app.t(
                            "Nothing is agreed on yet. Write down how these captions begin, and the one word you use for each thing; then captions that say it otherwise are listed here.",
                        ),
                    ),
                );
                return;
            }
            const mend = async (select) => {
                await bench.change(select, { do: "vocabulary", trigger: bench.trigger() });
                await look();
            };
            app.fill(
                departures,
                el(
                    "div",
                    { class: "lora-trainer-row lora-trainer-between" },
                    el(
                        "b",
                        {},
                        count
                            ? app.count(
                                  count,
                                  "{count} caption departs from it",
                                  "{count} captions depart from it",
                              )
                            : app.t("All captions keep to it."),
                    ),
                    count
                        ? app.widgets.button({
                              label: app.t("Mend all"),
                              kind: "primary",
                              onclick: () => mend({ where: {} }),
                          })
                        : null,
                ),
                el(
                    "ul",
                    { class: "lora-trainer-bench-list" },
                    found.slice(0, MOST_SHOWN).map((departure) =>
                        el(
                            "li",
                            { class: "lora-trainer-bench-line" },
                            el(
                                "div",
                                {},
                                el("b", {}, departure.name),
                                bench.bulk.shownDifference(departure.caption, departure.mended),
                            ),
                            app.widgets.button({
                                label: app.t("Mend"),
                                onclick: () => mend({ keys: [departure.key] }),
                            }),
                        ),
                    ),
                ),
            );
        }

        drawOrder();
        drawDepartures();
        app.widgets.dialog({
            title: app.t("Template and vocabulary"),
            wide: true,
            body: el(
                "div",
                { class: "lora-trainer-bench-two" },
                el(
                    "div",
                    { class: "lora-trainer-bench-form" },
                    app.widgets.labelled(app.t("How captions begin"), opening, {
                        help: app.t("A phrase for every caption, behind the trigger word."),
                    }),
                    el(
                        "p",
                        { class: "lora-trainer-help" },
                        app.t(
                            "Preferred words, with commas between; the order of the fields is the order in a caption.",
                        ),
                    ),
                    list,
                ),
                departures,
            ),
            actions: [
                { label: app.t("Close") },
                { label: app.t("Save and look"), kind: "primary", onclick: save },
            ],
        });
    }

    bench.words = { compose, open, listed };
})((window.loraTrainer = window.loraTrainer || {}));
