/* "Write captions": which captioner, for which images, with what around each caption; then its progress, with Pause and Stop, while new captions appear in
 * the page. A caption run is a run like a training: it goes on when the browser is closed. */
(function (app) {
    "use strict";

    const CHOICE_KEY = "lora-trainer-captioner";
    const AROUND = ["prefix", "suffix"];
    const SECONDS_ACTIVE = 1,
        SECONDS_WAITING = 4,
        SECONDS_NEWS = 600;
    const el = (...all) => app.el(...all);
    const bench = (app.workbench = app.workbench || {});
    const dataset = (app.dataset = app.dataset || {});
    let run = null,
        of = "",
        poll = null,
        draw = () => {},
        dismissed = "",
        witnessed = "";

    const isActive = () => Boolean(run) && (app.runs.isActive(run) || run.status === "queued");

    // --- asking ----------------------------------------------------------------------------------------------------------------------

    async function look() {
        const id = app.store.get("dataset");
        if (!id || app.current() !== "captions") return null;
        const before = run,
            was = isActive();
        let found;
        try {
            found = await app.api.get(dataset.path("caption-run", id));
        } catch (problem) {
            if (problem.status === 404) return null;
            throw problem;
        }
        if (id !== app.store.get("dataset")) return 0;
        run = found && found.id ? found : null;
        of = id;
        draw();
        // new captions appear as they come
        if (run && was && before.id === run.id && (before.step !== run.step || !isActive())) {
            bench.mark = () => app.t("New");
            try {
                await bench.page.pages.load({ quietly: true });
            } finally {
                bench.mark = () => app.t("Changed elsewhere");
            }
        }
        // a run that has ended can be undone as a whole
        if (was && !isActive()) {
            await bench.readEdits();
            await dataset.refresh();
            if (app.replan) app.replan();
        }
        return isActive() ? (run.status === "queued" ? SECONDS_WAITING : SECONDS_ACTIVE) : null;
    }

    const asked = () => {
        if (poll) poll.wake();
    };

    // --- the panel -------------------------------------------------------------------------------------------------------------------

    function panel() {
        const element = el("section", {
            class: "lora-trainer-card lora-trainer-bench-form",
            hidden: true,
            "aria-label": app.t("Writing captions"),
        });
        const progress = app.widgets.progress(app.t("Writing captions"));
        const pause = app.widgets.button({
            label: app.t("Pause"),
            onclick: () => app.runs.ask(run, "pause", asked),
        });
        const resume = app.widgets.button({
            label: app.t("Resume"),
            onclick: () => app.runs.ask(run, "resume", asked),
        });
        const stop = app.widgets.button({
            label: app.t("Stop"),
            onclick: () => app.runs.ask(run, "stop", asked),
        });
        const withdraw = app.widgets.button({
            label: app.t("Withdraw"),
            onclick: async () => {
                await app.api.post(app.runs.route(run, "unqueue"), {});
                run = null;
                draw();
            },
        });
        const busy = el(
            "div",
            { class: "lora-trainer-bench-progress" },
            progress.element,
            el("div", { class: "lora-trainer-row" }, pause, resume, stop, withdraw),
        );
        const warnings = el("div", { class: "lora-trainer-bench-form" });
        let drawn = "";

        draw = () => {
            const over = run && !isActive();
            if (isActive()) witnessed = run.id;
            element.hidden =
                !run ||
                of !== app.store.get("dataset") ||
                (over && (dismissed === run.id || seenBefore(run) || isOld()));
            if (element.hidden) return;
            const mark = JSON.stringify([run.id, over, run.warnings, run.failure, run.status]);
            if (!over) {
                const can = run.can || {};
                pause.hidden = !can.pause;
                resume.hidden = run.status !== "paused" && run.status !== "pausing";
                resume.disabled = !can.resume;
                withdraw.hidden = run.status !== "queued";
                stop.hidden = run.status === "queued";
                stop.disabled = !can.stop;
                progress.set(...share());
            }
            if (mark === drawn) return;
            drawn = mark;
            app.fill(
                warnings,
                (run.warnings || [])
                    .slice(-5)
                    .map((warning) => app.widgets.notice("warning", warning.message, warning.hint)),
            );
            app.fill(element, over ? ended() : busy, warnings);
        };
        return element;
    }

    /** Whether it ended so long ago that nobody waits for it. */
    const isOld = () =>
        witnessed !== run.id && Date.now() / 1000 - (run.changed || 0) > SECONDS_NEWS;

    /** done, total, words: of the images, or of what is being fetched before the first one. */
    function share() {
        const status =
            run.status === "running" && run.phase ? run.phase : app.runs.statusWords(run);
        if (run.step_count && run.step) {
            const left = run.seconds_left
                ? app.t("about {time} left", { time: app.duration(run.seconds_left) })
                : "";
            return [
                run.step,
                run.step_count,
                [
                    run.status === "running" ? "" : status,
                    app.t("{done} of {count} images", {
                        done: app.number(run.step),
                        count: app.number(run.step_count),
                    }),
                    left,
                ]
                    .filter(Boolean)
                    .join(" \u00b7 "),
            ];
        }
        return [run.phase_step || 0, run.phase_total || 0, run.sentence || status];
    }

    function ended() {
        const close = app.widgets.button({
            label: app.t("Close"),
            onclick: () => {
                dismissed = run.id;
                remember();
                draw();
            },
        });
        if (run.failure)
            return app.widgets.notice(
                "error",
                run.failure.message,
                run.failure.hint,
                app.widgets.button({ label: app.t("Try again"), onclick: ask }),
                close,
            );
        const words =
            run.status === "finished"
                ? app.t(
                      "The captions are written. Read them: what is wrong in a caption is learned as well.",
                  )
                : app.t("The captioner has stopped. What it wrote stays.");
        return app.widgets.notice(
            run.status === "finished" ? "done" : "info",
            words,
            run.sentence || "",
            run.status === "finished"
                ? app.widgets.button({
                      label: app.t("Show those not reviewed yet"),
                      onclick: () => bench.ask({ ...bench.emptyFilter(), filter: "unreviewed" }),
                  })
                : app.widgets.button({ label: app.t("Go on"), onclick: ask }),
            close,
        );
    }

    const remember = () => app.kept.set(CHOICE_KEY + "-closed", dismissed, { session: true });
    const seenBefore = (one) => app.kept.get(CHOICE_KEY + "-closed", { session: true }) === one.id;

    // --- the dialog ------------------------------------------------------------------------------------------------------------------

    async function ask() {
        await bench.page.saveAll();
        const captioners = await app.api.get("captioners");
        const { total, captioned } = bench.page.pages.answer;
        const kept = app.kept.get(CHOICE_KEY) || {};
        let chosen =
            captioners.find(
                (one) => one.name === (app.draft.captioner.captioner || kept.captioner),
            ) ||
            captioners.find((one) => one.on_disk) ||
            captioners[0];
        // what was set once for these images is offered again: {captioner: {key: value}}
        const options = { ...app.draft.captioner.options };
        const wish = { which: captioned < total ? "missing" : "machine" };
        let token = null;

        const fields = el("div", { class: "lora-trainer-bench-form" });
        const trouble = el("div");
        const note = el("p", { class: "lora-trainer-help", role: "status" });
        const list = el(
            "div",
            {
                class: "lora-trainer-bench-captioners",
                role: "radiogroup",
                "aria-label": app.t("Captioner"),
            },
            captioners.map(choice),
        );
        const targets = bench.targets(() => drawWhich());
        const which = el("div", {
            class: "lora-trainer-bench-form",
            role: "radiogroup",
            "aria-label": app.t("Which captions"),
        });
        drawWhich();

        function drawWhich() {
            const whole = targets.element.value === "all";
            app.fill(
                which,
                option(
                    "missing",
                    whole
                        ? app.t("Only images without a caption ({count})", {
                              count: app.number(total - captioned),
                          })
                        : app.t("Only images without a caption"),
                ),
                option(
                    "machine",
                    app.t("Those a captioner wrote as well; what a person wrote stays"),
                ),
                option(
                    "all",
                    app.t("All {count}, also what a person wrote", {
                        count: app.number(targets.count()),
                    }),
                ),
            );
        }

        function choice(captioner) {
            const id = app.id("captioner");
            const radio = el("input", {
                type: "radio",
                name: "lora_trainer_captioner",
                id,
                checked: captioner === chosen,
                onchange: () => {
                    chosen = captioner;
                    drawFields();
                },
            });
            const facts = [
                captioner.on_disk
                    ? app.t("on this computer")
                    : app.t("{size} to download", { size: captioner.download_text }),
                app.t("needs {memory} of memory", { memory: captioner.memory_text }),
                captioner.licence,
            ].filter(Boolean);
            return el(
                "div",
                { class: "lora-trainer-bench-captioner" },
                radio,
                el(
                    "label",
                    { for: id },
                    el("b", {}, captioner.title),
                    el("span", {}, captioner.sentence),
                    el(
                        "span",
                        { class: "lora-trainer-help" },
                        facts.join(" \u00b7 "),
                        captioner.needs ? " \u00b7 " + captioner.needs.sentence : "",
                    ),
                ),
            );
        }

        function option(value, label) {
            const id = app.id("which");
            return el(
                "div",
                { class: "lora-trainer-bench-flag" },
                el("input", {
                    type: "radio",
                    name: "lora_trainer_which",
                    id,
                    checked: wish.which === value,
                    onchange: () => {
                        wish.which = value;
                    },
                }),
                el("label", { for: id }, label),
            );
        }

        function drawFields() {
            const values = (options[chosen.name] = options[chosen.name] || {});
            const row = (field) => {
                const made = app.settingEntry(
                    field,
                    (value) => {
                        values[field.key] = value;
                    },
                    "lora_trainer_captioner_" + field.key,
                );
                made.show(field.key in values ? values[field.key] : field.default);
                return app.widgets.labelled(field.label, made.input, { help: field.help });
            };
            // what goes around each caption is asked of everybody; thresholds and the like of those who look for them
            const usual = chosen.fields.filter((field) => AROUND.includes(field.key)),
                rare = chosen.fields.filter((field) => !AROUND.includes(field.key));
            const word = bench.trigger();
            app.fill(
                fields,
                el("div", { class: "lora-trainer-bench-fields" }, usual.map(row)),
                word
                    ? el(
                          "p",
                          { class: "lora-trainer-help" },
                          app.t("Each caption begins with the trigger word: {word}", { word }),
                      )
                    : null,
                rare.length
                    ? el(
                          "details",
                          {},
                          el("summary", {}, app.t("More settings")),
                          el("div", { class: "lora-trainer-bench-fields" }, rare.map(row)),
                      )
                    : null,
            );
            note.textContent = chosen.on_disk
                ? ""
                : app.t("The first time, {size} are downloaded from {model}.", {
                      size: chosen.download_text,
                      model: chosen.model,
                  });
            for (const input of list.querySelectorAll("input"))
                input.parentElement.classList.toggle("lora-trainer-bench-chosen", input.checked);
        }

        async function begin(when) {
            token = token || app.random();
            const values = Object.fromEntries(
                Object.entries(options[chosen.name]).filter(
                    ([, value]) => value !== null && value !== "",
                ),
            );
            app.kept.set(CHOICE_KEY, { captioner: chosen.name });
            app.draft.captioner = { captioner: chosen.name, options };
            app.drafts.note();
            try {
                run = await app.api.post(dataset.path("caption-run"), {
                    captioner: chosen.name,
                    options: values,
                    only_missing: wish.which === "missing",
                    overwrite: wish.which === "all",
                    select: targets.select(),
                    trigger: bench.trigger(),
                    token,
                    when,
                });
            } catch (problem) {
                if (!(problem instanceof app.Problem)) throw problem;
                if (problem.status) token = null;
                app.fill(
                    trouble,
                    app.widgets.problem(problem),
                    (problem.problems || []).length > 1
                        ? bench.notes(
                              problem.problems.map((one) => app.sentences(one.message, one.hint)),
                          )
                        : null,
                );
                trouble.scrollIntoView({ block: "nearest" });
                return false;
            }
            of = app.store.get("dataset");
            draw();
            asked();
            return true;
        }

        const { setup } = app.store.get("home");
        const obstacle =
            setup && setup.state !== "ready"
                ? app.widgets.notice(
                      "info",
                      app.t("The captioners are not set up yet."),
                      setup.message,
                  )
                : null;
        app.widgets.dialog({
            title: app.t("Write captions"),
            wide: true,
            body: el(
                "div",
                { class: "lora-trainer-bench-two" },
                el("div", { class: "lora-trainer-bench-form" }, obstacle, list, note),
                el(
                    "div",
                    { class: "lora-trainer-bench-form" },
                    el("h4", {}, app.t("Which captions")),
                    app.widgets.labelled(app.t("In"), targets.element),
                    which,
                    fields,
                    trouble,
                ),
            ),
            actions: [
                { label: app.t("Cancel") },
                {
                    label: app.t("Add to the queue"),
                    disabled: Boolean(obstacle),
                    onclick: () => begin("queue"),
                },
                {
                    label: app.t("Write captions"),
                    kind: "primary",
                    disabled: Boolean(obstacle),
                    onclick: () => begin("now"),
                },
            ],
        });
        drawFields();
    }

    bench.captioner = {
        ask,
        panel,
        look: asked,
        watch: () => {
            poll = app.poll(look);
        },
    };
})((window.loraTrainer = window.loraTrainer || {}));
