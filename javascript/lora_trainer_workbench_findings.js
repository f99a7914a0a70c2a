/* The check: looking at every picture in the background, each thing that was found once with the button that mends all of it, what was found beside each
 * image, and pictures that are nearly the same side by side. Called by the section "captions" and by each row. */
(function (app) {
    "use strict";

    const SECONDS_RUNNING = 0.7,
        SECONDS_STALE = 3;
    const FOLDED_KEY = "lora-trainer-check-folded";
    const MOST_ITEMS = 500,
        MOST_CLUSTERS = 40,
        MOST_PICTURES = 24;
    const el = (...all) => app.el(...all);
    const bench = (app.workbench = app.workbench || {});
    const dataset = (app.dataset = app.dataset || {});
    /** The kinds whose pictures are shown. */
    const unfolded = new Set();
    let known = null,
        of = "",
        poll = null,
        draw = () => {};

    const isRunning = () =>
        Boolean(known) && (known.state === "running" || known.state === "waiting");

    // --- asking ----------------------------------------------------------------------------------------------------------------------

    async function look() {
        const id = app.store.get("dataset");
        if (!id || app.current() !== "captions") return null;
        const was = isRunning();
        try {
            known = await app.api.get(dataset.path("check", id));
        } catch (problem) {
            if (problem.status === 404) return null;
            throw problem;
        }
        if (id !== app.store.get("dataset")) return 0;
        of = id;
        draw();
        // what was found stands beside the images
        if (was && !isRunning()) await bench.page.pages.load({ quietly: true });
        return isRunning() ? SECONDS_RUNNING : known.stale ? SECONDS_STALE : null;
    }

    async function start() {
        await bench.page.saveAll();
        const { resolution } = app.store.get("settings") || {};
        known = await app.api.post(dataset.path("check"), {
            resolution: Number(resolution) || resolutionOfCheckpoint(),
            trigger: bench.trigger(),
            tokens: bench.limit(),
        });
        of = app.store.get("dataset");
        draw();
        poll.wake();
    }

    /** What the plan would train at; 512 where nothing is known. */
    function resolutionOfCheckpoint() {
        const { resolved } = app.store.get("plan") || {};
        return Number(resolved && resolved.resolution) || 512;
    }

    const stop = async () => {
        known = await app.api.post(dataset.path("check/stop"), {});
        draw();
    };

    async function mend(wish) {
        await bench.page.saveAll();
        const answer = await app.api.post(dataset.path("mend"), wish);
        await bench.took(answer, {
            say: app.count(answer.changed, "{count} image mended", "{count} images mended"),
        });
        await dataset.refresh();
        poll.wake();
    }

    /** What a kind of finding is called. */
    const label = (kind) =>
        ((known && known.sums.find((one) => one.kind === kind)) || { label: kind }).label;

    // --- the panel -------------------------------------------------------------------------------------------------------------------

    function panel() {
        const element = el("section", {
            class: "lora-trainer-card lora-trainer-bench-check",
            hidden: true,
            "aria-label": app.t("Check"),
        });
        const progress = app.widgets.progress(app.t("Check"));
        const busy = el(
            "div",
            { class: "lora-trainer-bench-progress" },
            progress.element,
            app.widgets.button({ label: app.t("Stop"), onclick: stop }),
        );
        let drawn = "";

        draw = () => {
            element.hidden = !known || of !== app.store.get("dataset") || known.state === "none";
            if (element.hidden) return;
            if (isRunning()) {
                progress.set(
                    known.done,
                    known.total,
                    known.total
                        ? app.t("Looking at the images: {done} of {count}", {
                              done: app.number(known.done),
                              count: app.number(known.total),
                          })
                        : app.t("Looking at the images"),
                );
                if (!busy.isConnected) app.fill(element, busy);
                drawn = "";
                return;
            }
            const mark = JSON.stringify([known, bench.page.pages.query.finding]);
            if (mark === drawn) return;
            drawn = mark;
            app.fill(
                element,
                known.state === "failed"
                    ? app.widgets.notice("error", known.error.message, known.error.hint)
                    : summary(),
            );
        };
        bench.on("answer", () => draw());
        // what was changed may be looked at again by now
        bench.on("revision", () => poll && known && known.state !== "none" && poll.wake());
        return element;
    }

    function summary() {
        const { sums } = known;
        const head =
            known.state === "stopped"
                ? app.t("Stopped after {done} of {count} images.", {
                      done: app.number(known.done),
                      count: app.number(known.total),
                  })
                : sums.length
                  ? app.count(sums.length, "{count} thing to look at", "{count} things to look at")
                  : app.t("All {count} images look fine.", { count: app.number(known.total) });
        const line = [
            el("b", {}, head),
            el(
                "span",
                { class: "lora-trainer-help" },
                [
                    known.checked ? app.when(known.checked) : "",
                    known.stale ? app.t("being looked at again") : "",
                ]
                    .filter(Boolean)
                    .join(" \u00b7 "),
            ),
        ];
        if (!sums.length)
            return el("div", { class: "lora-trainer-row lora-trainer-between" }, line);
        // whoever has read it wants the pictures: it folds to its heading
        const fold = el(
            "details",
            {
                class: "lora-trainer-bench-fold",
                open: !app.kept.get(FOLDED_KEY),
                ontoggle: () => app.kept.set(FOLDED_KEY, !fold.open),
            },
            el("summary", {}, line),
            el("ul", { class: "lora-trainer-bench-sums" }, sums.map(sumLine)),
        );
        return fold;
    }

    /** One thing that was found: what it is, what to do, all of it at a click; its pictures when it is unfolded. */
    function sumLine(sum) {
        const on = bench.page.pages.query.finding === sum.kind;
        const show = async () => {
            unfolded.delete(sum.kind);
            await bench.ask({ finding: on ? "" : sum.kind });
            // the pictures lie below all that was found
            if (!on)
                bench.page.panel
                    .querySelector(".lora-trainer-captions-list")
                    .scrollIntoView({ block: "start" });
        };
        const similar =
            ["near-duplicate", "duplicate-image"].includes(sum.kind) && known.clusters.length;
        const buttons = [
            sum.mend
                ? app.widgets.button({
                      label:
                          sum.mend.count > 1
                              ? app.t("{mend} (all {count})", {
                                    mend: sum.mend.label,
                                    count: app.number(sum.mend.count),
                                })
                              : sum.mend.label,
                      onclick: () => mend({ kind: sum.kind }),
                  })
                : null,
            similar
                ? app.widgets.button({
                      label: app.t("Compare"),
                      onclick: () => showClusters(known.clusters),
                  })
                : null,
            sum.images
                ? bench.link(on ? app.t("Show all images") : app.t("Show only these"), show, {
                      "aria-pressed": String(on),
                  })
                : null,
        ];
        const hint = sum.hint ? el("p", { class: "lora-trainer-help" }, sum.hint) : null;
        const words = sum.images
            ? unfolding(sum, hint)
            : el("div", {}, el("b", {}, sum.message), hint);
        return el(
            "li",
            { class: "lora-trainer-bench-sum", dataset: { severity: sum.severity } },
            words,
            el("div", { class: "lora-trainer-row" }, buttons),
        );
    }

    /** Its pictures are asked for when somebody wants to see them. */
    function unfolding(sum, hint) {
        const place = el("div", { class: "lora-trainer-bench-pictures" });
        const details = el(
            "details",
            {
                open: unfolded.has(sum.kind),
                ontoggle: () => {
                    if (!details.open) {
                        unfolded.delete(sum.kind);
                        return;
                    }
                    unfolded.add(sum.kind);
                    fetchPictures(sum, place).catch((problem) =>
                        app.fill(place, app.widgets.problem(problem)),
                    );
                },
            },
            el("summary", {}, el("b", {}, sum.message)),
            place,
        );
        return el("div", {}, details, hint);
    }

    async function fetchPictures(sum, place) {
        const { items, matching } = await app.api.get(dataset.path("items"), {
            finding: sum.kind,
            limit: MOST_PICTURES,
        });
        app.fill(
            place,
            items.map((item) => picture(sum, item, items)),
            matching > items.length
                ? el(
                      "p",
                      { class: "lora-trainer-help" },
                      app.t("and {count} more", { count: app.number(matching - items.length) }),
                  )
                : null,
        );
    }

    function picture(sum, item, items) {
        const said = item.findings
            .filter((finding) => finding.kind === sum.kind)
            .map((finding) => finding.message);
        return el(
            "figure",
            { class: "lora-trainer-bench-alike" },
            el(
                "button",
                {
                    type: "button",
                    class: "lora-trainer-caption-picture",
                    "aria-label": app.t("Enlarge {name}", { name: item.name }),
                    onclick: () => dataset.enlarge(items, item),
                },
                dataset.thumbnail(item),
            ),
            el(
                "figcaption",
                {},
                el("span", { class: "lora-trainer-cell-name", title: item.name }, item.name),
                said.length
                    ? el(
                          "span",
                          {
                              class: "lora-trainer-help lora-trainer-bench-clip",
                              title: said.join("\n"),
                          },
                          app.sentences(said),
                      )
                    : null,
            ),
        );
    }

    // --- beside an image -------------------------------------------------------------------------------------------------------------

    /** One finding with what mends it. A crop is outlined in the picture while its button is pointed at. */
    function line(finding, item) {
        const buttons = [
            finding.mend ? mendLink(finding, item) : null,
            finding.related && finding.related.length
                ? bench.link(app.t("Compare"), () =>
                      showClusters([
                          { keys: [...new Set([item.key, ...finding.related])], best: null },
                      ]),
                  )
                : null,
        ].filter(Boolean);
        return el(
            "li",
            { class: "lora-trainer-bench-finding", dataset: { severity: finding.severity } },
            el("p", {}, finding.message),
            finding.hint ? el("p", { class: "lora-trainer-help" }, finding.hint) : null,
            buttons.length ? el("span", { class: "lora-trainer-row" }, buttons) : null,
        );
    }

    function mendLink(finding, item) {
        const button = bench.link(finding.mend.label, () => mend({ ids: [finding.id] }));
        const { box } = finding.mend;
        if (!box || !item.width) return button;
        let frame = null;
        const show = () => {
            const thumb = button
                .closest(".lora-trainer-caption-row")
                .querySelector(".lora-trainer-thumb");
            if (!frame)
                thumb.append(
                    (frame = el("span", {
                        class: "lora-trainer-bench-outline",
                        style: outline(box, item),
                    })),
                );
        };
        const hide = () => {
            if (frame) frame.remove();
            frame = null;
        };
        for (const event of ["pointerenter", "focus"]) button.addEventListener(event, show);
        for (const event of ["pointerleave", "blur"]) button.addEventListener(event, hide);
        return button;
    }

    /** Where a box of a picture (left, top, right, bottom in its pixels) lies in its square thumbnail. */
    function outline([left, top, right, bottom], { width, height }) {
        const side = Math.max(width, height);
        const share = (length) => (100 * length) / side + "%";
        return {
            left: share((side - width) / 2 + left),
            top: share((side - height) / 2 + top),
            width: share(right - left),
            height: share(bottom - top),
        };
    }

    // --- similar images --------------------------------------------------------------------------------------------------------------

    async function itemsOf(keys) {
        const { items } = bench.page.pages.answer;
        const found = new Map(items.map((item) => [item.key, item]));
        // the others stand on other pages, which are asked for one after the other
        for (let offset = 0; keys.some((key) => !found.has(key)); offset += MOST_ITEMS) {
            const answer = await app.api.get(dataset.path("items"), { offset, limit: MOST_ITEMS });
            for (const item of answer.items) found.set(item.key, item);
            if (offset + MOST_ITEMS >= answer.total) break;
        }
        return found;
    }

    async function showClusters(clusters) {
        const items = await itemsOf(clusters.flatMap(({ keys }) => keys));
        const place = el("div", { class: "lora-trainer-bench-form" });
        const shown = clusters.slice(0, MOST_CLUSTERS);
        let dialog = null;

        const figure = (cluster, key) => {
            const item = items.get(key) || {
                key,
                name: "",
                thumbnail: app.address(dataset.path("thumbnail/" + key + ".webp")),
                caption: "",
            };
            const others = cluster.keys.filter((other) => other !== key);
            return el(
                "figure",
                { class: "lora-trainer-bench-alike" },
                dataset.thumbnail(item),
                el(
                    "figcaption",
                    {},
                    el("b", { class: "lora-trainer-cell-name", title: item.name }, item.name),
                    el(
                        "span",
                        { class: "lora-trainer-help" },
                        [
                            item.width ? item.width + " \u00d7 " + item.height : "",
                            key === cluster.best ? app.t("the best of them") : "",
                        ]
                            .filter(Boolean)
                            .join(" \u00b7 "),
                    ),
                    el(
                        "span",
                        { class: "lora-trainer-help lora-trainer-bench-clip" },
                        item.caption || app.t("no caption"),
                    ),
                ),
                app.widgets.button({
                    label: app.t("Keep this one"),
                    kind: key === cluster.best ? "primary" : "secondary",
                    onclick: () => keep(cluster, others),
                }),
            );
        };

        async function keep(cluster, others) {
            await bench.page.saveAll();
            const answer = await app.api.post(dataset.path("remove"), { keys: others });
            shown.splice(shown.indexOf(cluster), 1);
            show();
            await bench.took(answer, {
                say: app.count(others.length, "{count} image removed", "{count} images removed"),
            });
            await dataset.refresh();
            poll.wake();
        }

        function show() {
            if (!shown.length) {
                dialog.close();
                return;
            }
            app.fill(
                place,
                shown.map((cluster) =>
                    el(
                        "section",
                        { class: "lora-trainer-card" },
                        el(
                            "div",
                            { class: "lora-trainer-bench-cluster" },
                            cluster.keys.map((key) => figure(cluster, key)),
                        ),
                        app.widgets.button({
                            label: app.t("Keep all of them"),
                            onclick: () => {
                                shown.splice(shown.indexOf(cluster), 1);
                                show();
                            },
                        }),
                    ),
                ),
            );
        }

        dialog = app.widgets.dialog({
            title: app.t("Similar images"),
            wide: true,
            body: [
                el(
                    "p",
                    { class: "lora-trainer-help" },
                    app.t(
                        "The same picture twice counts twice in the training. The others go to this dataset's trash, and can be brought back.",
                    ),
                ),
                place,
            ],
            actions: [{ label: app.t("Close") }],
        });
        show();
    }

    bench.check = {
        start,
        panel,
        line,
        label,
        outline,
        look: () => {
            if (poll) poll.wake();
        },
        watch: () => {
            poll = app.poll(look);
        },
    };
})((window.loraTrainer = window.loraTrainer || {}));
