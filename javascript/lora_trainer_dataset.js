/* The chosen dataset and one page of its images, as the sections "images" and "captions" need them. The server holds the truth: a page is asked for
 * again now and then, by its revision, so that what another browser or an editor changed is seen. */
(function (app) {
    "use strict";

    const CHOSEN_KEY = "lora-trainer-dataset";
    const PAGE = 60;
    const el = (...all) => app.el(...all);

    const dataset = (app.dataset = app.dataset || {});

    /** Seconds until it is looked again whether something has changed. */
    dataset.lookEvery = dataset.lookEvery || 4;

    /** The cards of all datasets; null while they are not known. */
    dataset.cards = () => app.store.get("datasets") || null;

    dataset.chosen = () =>
        (dataset.cards() || []).find((card) => card.id === app.store.get("dataset")) || null;

    dataset.choose = function (id) {
        // what is set belongs to the dataset: it is in place before anybody hears that another one is chosen
        const card = (dataset.cards() || []).find((one) => one.id === id);
        app.drafts.enter(id, card && card.draft);
        app.store.set("dataset", id);
        app.kept.set(CHOSEN_KEY, id);
        summarize();
    };

    /** Where the routes of a dataset are; the chosen one's without an id. */
    dataset.path = (tail = "", id = app.store.get("dataset")) =>
        "datasets/" + encodeURIComponent(id) + (tail ? "/" + tail : "");

    /** Ask for the cards again. */
    dataset.refresh = async function () {
        take(await app.api.get("datasets"));
        return dataset.cards();
    };

    /** Put one changed card in its place. */
    dataset.update = function (changes) {
        const cards = dataset.cards() || [];
        const known = cards.some((card) => card.id === changes.id);
        app.store.set(
            "datasets",
            known
                ? cards.map((card) => (card.id === changes.id ? { ...card, ...changes } : card))
                : [...cards, changes],
        );
        summarize();
    };

    function take(answered) {
        const cards = withLost(answered);
        app.store.set("datasets", cards);
        const chosen = app.store.get("dataset") || app.kept.get(CHOSEN_KEY);
        const known = cards.some((card) => card.id === chosen);
        dataset.choose(known ? chosen : cards.length === 1 ? cards[0].id : "");
    }

    /** The chosen dataset stays in view when it vanishes under somebody's hands, and says so: no other takes its place unasked. */
    function withLost(cards) {
        const chosen = dataset.chosen();
        if (!chosen || cards.some((card) => card.id === chosen.id)) return cards;
        const problem = {
            message: app.t("This dataset is not there any more."),
            hint: app.t("It may have been deleted in another window."),
        };
        return [
            ...cards,
            { ...chosen, cover: null, count: 0, captioned: 0, gone: true, lost: true, problem },
        ];
    }

    /** Where the plan knows of trouble with the images that the card does not tell, or the other way round, the cards are asked for again. */
    let troubled = "";
    app.store.on("plan", (plan) => {
        const card = dataset.chosen();
        const problem =
            plan &&
            plan.problems.find((one) => one.severity === "error" && one.field === "dataset");
        const now = card ? JSON.stringify([card.id, problem ? problem.message : ""]) : "";
        if (!card || now === troubled || Boolean(problem) === Boolean(card.problem)) return;
        troubled = now;
        dataset.refresh().catch(() => {});
    });

    function summarize() {
        const card = dataset.chosen();
        if (card && card.problem) {
            app.summary(
                "images",
                card.gone ? app.t("The folder is gone") : app.t("needs attention"),
                "problem",
            );
            app.summary("captions", "", "");
            return;
        }
        app.summary("images", card ? app.colon(card.name, dataset.count(card.count)) : "", "");
        app.summary(
            "captions",
            card && card.count
                ? app.t("{done} of {count}", {
                      done: app.number(card.captioned),
                      count: app.number(card.count),
                  })
                : "",
            "",
        );
    }

    dataset.count = (count) => app.count(count, "{count} image", "{count} images");

    (app.onstart = app.onstart || []).push((home) => {
        if (home.datasets) take(home.datasets);
        else dataset.refresh().catch(app.widgets.toastProblem);
    });

    /** One page of the chosen dataset. `show(answer, quietly)` draws it, quietly when nobody asked for it; `fail(problem)` says why there is none. `gone()`
     * is how many of those shown no longer pass the filter, so that the next page does not leave out as many. Has query, load(), ask(changes), bar. */
    dataset.pages = function ({ show, fail, gone = () => 0 }) {
        const pages = {
            query: { offset: 0, filter: "all", text: "", order: "name" },
            answer: null,
            size: PAGE,
        };
        let serial = 0,
            asked = 0,
            failed = false;

        pages.bar = el("nav", { class: "lora-trainer-pages", "aria-label": app.t("Pages") });

        /** Ask for the page; with `known`, only if something has changed since. Answers that were overtaken are dropped. */
        pages.load = async function ({ quietly = false } = {}) {
            const id = app.store.get("dataset");
            if (!id) {
                pages.answer = null;
                return;
            }
            // what somebody waits for must not be overtaken by a look at the page before
            if (quietly && asked) return;
            const mine = (serial += 1);
            if (!quietly) asked += 1;
            try {
                // what shows a problem is drawn again
                const known =
                    quietly && !failed && pages.answer && pages.answer.id === id
                        ? pages.answer.revision
                        : "";
                const answer = await app.api.get(dataset.path("items"), {
                    ...pages.query,
                    limit: PAGE,
                    known,
                });
                if (mine !== serial || id !== app.store.get("dataset") || answer.unchanged) return;
                if (!answer.items.length && answer.matching) {
                    pages.query.offset = Math.floor((answer.matching - 1) / PAGE) * PAGE;
                    await pages.load();
                    return;
                }
                failed = false;
                pages.answer = { ...answer, id };
                dataset.update({
                    id,
                    count: answer.total,
                    captioned: answer.captioned,
                    problem: null,
                    gone: false,
                    lost: false,
                });
                drawBar();
                show(pages.answer, quietly);
            } catch (problem) {
                if (mine !== serial || id !== app.store.get("dataset")) return;
                // the cards say what has become of it
                if (!failed && problem.status >= 400 && problem.status < 500)
                    dataset.refresh().catch(() => {});
                failed = true;
                fail(problem);
            } finally {
                if (!quietly) asked -= 1;
            }
        };

        pages.ask = function (changes) {
            Object.assign(pages.query, { offset: 0 }, changes);
            return pages.load();
        };

        /** Look now and again while the section is open. */
        pages.watch = (id) =>
            app.poll(async () => {
                if (app.current() === id && (pages.answer || failed))
                    await pages.load({ quietly: true });
                return dataset.lookEvery;
            });

        function drawBar() {
            const { matching } = pages.answer;
            const { offset } = pages.query;
            if (matching <= PAGE) {
                app.fill(pages.bar);
                return;
            }
            const go = (to) => async () => {
                await pages.ask({ offset: to() });
            };
            app.fill(
                pages.bar,
                app.widgets.button({
                    label: app.t("Previous page"),
                    disabled: offset === 0,
                    onclick: go(() => Math.max(0, offset - PAGE)),
                }),
                el(
                    "span",
                    { "aria-live": "polite" },
                    app.t("{first} to {last} of {count}", {
                        first: app.number(offset + 1),
                        last: app.number(Math.min(matching, offset + PAGE)),
                        count: app.number(matching),
                    }),
                ),
                app.widgets.button({
                    label: app.t("Next page"),
                    disabled: offset + PAGE >= matching,
                    onclick: go(() => offset + PAGE - gone()),
                }),
            );
        }

        return pages;
    };

    /** The boxes above a page: which images, containing what, in which order. */
    dataset.filters = function (pages, { order = true } = {}) {
        let timer = 0;
        const soon = (text) => {
            clearTimeout(timer);
            timer = setTimeout(() => pages.ask({ text }), 250);
        };
        return el(
            "div",
            { class: "lora-trainer-filters" },
            app.widgets.select({
                label: app.t("Which images"),
                value: pages.query.filter,
                onchange: (filter) => pages.ask({ filter }),
                options: [
                    { value: "all", label: app.t("All images") },
                    { value: "missing", label: app.t("Without a caption") },
                    { value: "captioned", label: app.t("With a caption") },
                    { value: "findings", label: app.t("With a remark") },
                ],
            }),
            app.widgets.text({
                value: pages.query.text,
                label: app.t("Caption or name contains"),
                placeholder: app.t("Caption or name contains"),
                oninput: soon,
            }),
            order
                ? app.widgets.select({
                      label: app.t("Order"),
                      value: pages.query.order,
                      onchange: (chosen) => pages.ask({ order: chosen }),
                      options: [
                          { value: "name", label: app.t("By name") },
                          { value: "changed", label: app.t("Newest first") },
                          { value: "caption", label: app.t("By caption") },
                      ],
                  })
                : null,
        );
    };

    /** What was found about the dataset as a whole, folded together when it is long; the page is read again when something was mended. */
    dataset.remarks = function (findings, pages) {
        if (!findings.length) return null;
        const mend = (finding) =>
            finding.mend
                ? app.widgets.button({ label: finding.mend.label, onclick: () => convert(pages) })
                : null;
        const lines = findings.map((finding) =>
            el(
                "li",
                {},
                finding.message,
                finding.hint
                    ? el("span", { class: "lora-trainer-help" }, " " + finding.hint)
                    : null,
                " ",
                mend(finding),
                finding.each.length
                    ? el(
                          "details",
                          {},
                          el("summary", { class: "lora-trainer-help" }, app.t("Which ones")),
                          el(
                              "ul",
                              {},
                              finding.each.map((one) =>
                                  el("li", { class: "lora-trainer-help" }, one),
                              ),
                              finding.count > finding.each.length
                                  ? el(
                                        "li",
                                        { class: "lora-trainer-help" },
                                        app.t("and {count} more", {
                                            count: app.number(finding.count - finding.each.length),
                                        }),
                                    )
                                  : null,
                          ),
                      )
                    : null,
            ),
        );
        return el(
            "details",
            {
                class: "lora-trainer-remarks",
                open: findings.length <= 3 || findings.some((finding) => finding.mend),
            },
            el(
                "summary",
                {},
                app.count(
                    findings.length,
                    "{count} remark about this dataset",
                    "{count} remarks about this dataset",
                ),
            ),
            el("ul", {}, lines),
        );
    };

    /** Pictures that the WebUI cannot show -> JPEG or PNG, all of the dataset at once. */
    async function convert(pages) {
        const again = async () => {
            await dataset.refresh();
            await pages.load();
        };
        const undo = async () => {
            await app.api.post(dataset.path("undo"), {});
            await again();
        };
        const { changed, conflicts } = await app.api.post(dataset.path("convert"), {});
        if (changed)
            app.widgets.toast(
                app.count(changed, "{count} picture converted", "{count} pictures converted"),
                { severity: "done", seconds: 10, action: { label: app.t("Undo"), onclick: undo } },
            );
        if (conflicts.length) {
            app.widgets.dialog({
                title: app.count(
                    conflicts.length,
                    "{count} picture could not be converted",
                    "{count} pictures could not be converted",
                ),
                body: el(
                    "ul",
                    {},
                    conflicts.map((conflict) => el("li", {}, conflict.message)),
                ),
                actions: [{ label: app.t("Close"), kind: "primary" }],
            });
        }
        await again();
    }

    /** Show the page's pictures large, beginning with one of them. */
    dataset.enlarge = (items, item) =>
        app.viewer.open(
            items.map((one) => ({
                url: one.picture,
                label: one.name,
                note: [one.width ? one.width + " \u00d7 " + one.height : "", one.caption]
                    .filter(Boolean)
                    .join(" \u00b7 "),
            })),
            items.indexOf(item),
        );

    /** A thumbnail in a box of fixed shape; says so where the picture cannot be shown. */
    dataset.thumbnail = function (item) {
        const image = el("img", {
            src: item.thumbnail,
            alt: "",
            loading: "lazy",
            decoding: "async",
            draggable: "false",
        });
        const box = el("span", { class: "lora-trainer-thumb" }, image);
        image.addEventListener("error", () =>
            app.fill(
                box,
                el("span", { class: "lora-trainer-thumb-broken" }, app.t("Cannot be shown")),
            ),
        );
        return box;
    };
})((window.loraTrainer = window.loraTrainer || {}));
