/* The boxes above the captions: which images, in which order. The counts beside the choices come with each page. */
(function (app) {
    "use strict";

    const WAIT = 250;
    const el = (...all) => app.el(...all);
    const bench = (app.workbench = app.workbench || {});

    const choices = () => [
        ["all", app.t("All images")],
        ["missing", app.t("Without a caption")],
        ["captioned", app.t("With a caption")],
        ["short", app.t("Short captions")],
        ["long", app.t("Longer than training reads")],
        ["no-trigger", app.t("Without the trigger word")],
        ["unreviewed", app.t("Not reviewed yet")],
        ["reviewed", app.t("Reviewed")],
        ["person", app.t("Written by a person")],
        ["machine", app.t("Written by a captioner")],
        ["findings", app.t("With a remark")],
    ];

    const orders = () => [
        { value: "name", label: app.t("By name") },
        { value: "changed", label: app.t("Newest first") },
        { value: "edited", label: app.t("Last edited first") },
        { value: "caption", label: app.t("By caption") },
        { value: "tokens-down", label: app.t("Longest first") },
        { value: "tokens", label: app.t("Shortest first") },
        { value: "findings", label: app.t("Most remarks first") },
    ];

    bench.filters = function () {
        const { pages } = bench.page;
        const { query } = pages;
        let timer = 0;
        const soon = (changes) => {
            clearTimeout(timer);
            timer = setTimeout(() => bench.ask(changes), WAIT);
        };
        const which = app.widgets.select({
            label: app.t("Which images"),
            value: query.filter,
            onchange: (filter) => bench.ask({ filter }),
            options: choices().map(([value, label]) => ({ value, label })),
        });
        const text = app.widgets.text({
            value: query.text,
            label: app.t("Caption or name contains"),
            placeholder: app.t("Caption or name contains"),
            oninput: (value) => soon({ text: value }),
        });
        const lacks = app.widgets.text({
            value: query.lacks,
            label: app.t("Caption does not contain"),
            placeholder: app.t("Caption does not contain"),
            oninput: (value) => soon({ lacks: value }),
        });
        const order = app.widgets.select({
            label: app.t("Order"),
            value: query.order,
            onchange: (chosen) => bench.turn({ order: chosen }),
            options: orders(),
        });
        const size = app.widgets.select({
            label: app.t("Pictures"),
            value: bench.picturesAreLarge() ? "large" : "small",
            onchange: bench.showPictures,
            options: [
                { value: "small", label: app.t("Small pictures") },
                { value: "large", label: app.t("Large pictures") },
            ],
        });
        const chips = (bench.chips = el("div", {
            class: "lora-trainer-row lora-trainer-bench-chips",
        }));

        function draw(answer) {
            const counts = answer.counts || {};
            choices().forEach(([value, label], at) => {
                which.options[at].textContent =
                    value in counts
                        ? app.t("{label} ({count})", { label, count: app.number(counts[value]) })
                        : label;
                // nothing to choose where no word is set
                which.options[at].disabled = value === "no-trigger" && !bench.trigger();
            });
            which.value = query.filter;
            if (document.activeElement !== text) text.value = query.text;
            if (document.activeElement !== lacks) lacks.value = query.lacks;
            const wanted = bench.filterTags("tag");
            app.fill(
                chips,
                wanted.map((tag) =>
                    chip(app.t("Tag: {tag}", { tag }), () => bench.toggleTag("tag", tag)),
                ),
                wanted.length > 1
                    ? app.widgets.select({
                          label: app.t("Of these tags"),
                          value: query.match,
                          onchange: (match) => bench.ask({ match }),
                          options: [
                              { value: "all", label: app.t("all of them") },
                              { value: "any", label: app.t("one is enough") },
                          ],
                      })
                    : null,
                bench
                    .filterTags("without")
                    .map((tag) =>
                        chip(app.t("Not: {tag}", { tag }), () => bench.toggleTag("without", tag)),
                    ),
                query.finding
                    ? chip(
                          app.t("Remark: {kind}", { kind: bench.check.label(query.finding) }),
                          () => bench.ask({ finding: "" }),
                      )
                    : null,
                bench.isFiltered()
                    ? el(
                          "span",
                          { class: "lora-trainer-help" },
                          app.t("{matching} of {count} images", {
                              matching: app.number(answer.matching),
                              count: app.number(answer.total),
                          }),
                      )
                    : null,
                bench.isFiltered()
                    ? link(app.t("Show all"), () => bench.ask(bench.emptyFilter()))
                    : null,
            );
        }

        bench.on("answer", draw);
        return el("div", { class: "lora-trainer-filters" }, which, text, lacks, order, size);
    };

    const chip = (label, end) =>
        el(
            "span",
            { class: "lora-trainer-badge lora-trainer-bench-chip" },
            label,
            el(
                "button",
                {
                    type: "button",
                    class: "lora-trainer-close",
                    "aria-label": app.t("Without {filter}", { filter: label }),
                    onclick: () => {
                        end().catch(app.widgets.toastProblem);
                    },
                },
                "\u00d7",
            ),
        );

    /** A button that reads like a link, for what is seldom needed. */
    const link = (label, onclick, more) =>
        el(
            "button",
            {
                type: "button",
                class: "lora-trainer-bench-link",
                onclick: async (event) => {
                    try {
                        await onclick(event);
                    } catch (problem) {
                        app.widgets.toastProblem(problem);
                    }
                },
                ...(more || {}),
            },
            label,
        );
    bench.link = link;
})((window.loraTrainer = window.loraTrainer || {}));
