/* The live view of one run: what the route "live" tells, drawn; numbers change in place and nothing jumps.
 *
 *     const view = app.live(done)      view.element;  view.set(live, points);  view.connection(problem or null)
 *     app.live.buttons(done)           what can be asked of a run at work: {all: [buttons], set(run)}, for the bar at the window's edge
 *
 * done(run?) is called when a button has changed something. Called by the section "train", which asks the server. */
(function (app) {
    "use strict";

    const el = (...all) => app.el(...all);

    /** Change a text only if it is another one: the host looks at the whole page after every change of its elements. */
    function put(element, text) {
        if (element.textContent !== text) element.textContent = text;
    }

    /** Draw again only when what it is drawn from has changed. */
    function redraw(element, key, make) {
        if (element.dataset.drawn === key) return;
        element.dataset.drawn = key;
        app.fill(element, make());
    }

    app.live = function (done) {
        let run = null;
        const name = el("h3");
        const status = el("span", { class: "lora-trainer-badge" });
        const sentence = el("p", { class: "lora-trainer-live-sentence" });
        const spoken = el("p", {
            class: "lora-trainer-spoken",
            role: "status",
            "aria-live": "polite",
        });
        const lost = el("p", {
            class: "lora-trainer-live-connection lora-trainer-hint",
            role: "status",
        });
        const bar = app.widgets.progress(app.t("Progress of the training"));
        const facts = factsTable();
        const notices = el("div", { class: "lora-trainer-live-notices" });
        const handed = el("p", { class: "lora-trainer-help lora-trainer-live-handover" });
        const chart = app.chart();
        const previews = previewGrid();
        const log = el("pre", {
            class: "lora-trainer-pre lora-trainer-log",
            tabindex: "0",
            "aria-label": app.t("Log"),
        });
        const logBox = el(
            "details",
            { class: "lora-trainer-log-box", ontoggle: () => done() },
            el("summary", {}, app.t("Log")),
            log,
        );
        const graphs = el(
            "div",
            { class: "lora-trainer-live-graphs" },
            chart.element,
            previews.element,
        );
        const element = el(
            "section",
            {
                class: "lora-trainer-card lora-trainer-live",
                "aria-label": app.t("Training"),
                hidden: true,
            },
            el("div", { class: "lora-trainer-live-head" }, name, status),
            sentence,
            bar.element,
            facts.element,
            lost,
            spoken,
            notices,
            handed,
            graphs,
            logBox,
        );

        function set(now, points) {
            const before = run;
            run = now.run;
            element.hidden = false;
            const words = app.runs.statusWords(run);
            put(name, run.name);
            put(status, words);
            status.dataset.status = run.status;
            put(sentence, run.failure ? "" : run.sentence);
            if (
                !before ||
                before.id !== run.id ||
                before.status !== run.status ||
                before.phase !== run.phase
            )
                put(spoken, run.name + ": " + words);
            setBar(bar, run);
            facts.set(run);
            redraw(
                notices,
                JSON.stringify([
                    run.id,
                    run.failure,
                    run.warnings,
                    run.status,
                    run.lora,
                    run.can,
                    app.store.get("delivered"),
                ]),
                () => noticesOf(run, done),
            );
            put(handed, handOverWords(now.handover, run));
            graphs.hidden = run.job !== "train";
            chart.set(points, run.step_count);
            previews.set(now.previews, noPreviews(run));
            if (logBox.open && now.log.length) putLog(log, now.log.join("\n"));
        }

        return {
            element,
            set,
            wantsLog: () => logBox.open,
            hide() {
                element.hidden = true;
                run = null;
            },
            connection(problem) {
                put(lost, problem ? app.t("Connection lost, trying again ...") : "");
            },
        };
    };

    function putLog(log, text) {
        if (log.textContent === text) return;
        const atEnd = log.scrollTop + log.clientHeight >= log.scrollHeight - 8;
        log.textContent = text;
        if (atEnd) log.scrollTop = log.scrollHeight;
    }

    function setBar(bar, run) {
        // a save or a preview in between does not move the bar away from the steps
        if (
            run.step_count &&
            (run.step > 0 || !(app.runs.isActive(run) || run.status === "queued"))
        )
            bar.set(
                run.step,
                run.step_count,
                app.t("{share} %", { share: Math.floor((run.step / run.step_count) * 100) }),
            );
        else if (run.phase_total)
            bar.set(
                run.phase_step,
                run.phase_total,
                app.t("{phase}: {done} of {total}", {
                    phase: run.phase,
                    done: run.phase_step,
                    total: run.phase_total,
                }),
            );
        else bar.set(0, app.runs.isActive(run) ? 0 : 1, app.runs.statusWords(run));
    }

    /** A table of fixed cells, so that a number that comes or goes moves nothing. */
    function factsTable() {
        const cells = {};
        const cell = (key, label) =>
            el("div", {}, el("dt", {}, label), (cells[key] = el("dd", {}, "\u2013")));
        const element = el(
            "dl",
            { class: "lora-trainer-facts" },
            cell("step", app.t("Step")),
            cell("epoch", app.t("Epoch")),
            cell("loss", app.t("Loss")),
            cell("speed", app.t("Images per second")),
            cell("left", app.t("Time left")),
            cell("memory", app.t("Peak memory")),
        );
        const or = (value, say) => (value === null || value === undefined ? "\u2013" : say(value));
        return {
            element,
            set(run) {
                put(
                    cells.step,
                    run.step_count
                        ? app.number(run.step) + " / " + app.number(run.step_count)
                        : "\u2013",
                );
                put(
                    cells.epoch,
                    run.epoch_count
                        ? app.number(run.epoch) + " / " + app.number(run.epoch_count)
                        : "\u2013",
                );
                put(
                    cells.loss,
                    or(run.smoothed_loss, (loss) => app.number(loss, 4)),
                );
                put(
                    cells.speed,
                    or(run.images_per_second, (speed) => app.number(speed, 2)),
                );
                put(cells.left, or(run.seconds_left, app.duration));
                put(cells.memory, or(run.memory, app.size));
            },
        };
    }

    function runButtons(done) {
        let shown = null;
        const ask = (what) => () => app.runs.ask(shown, what, done);
        const made = {
            pause: app.widgets.button({ label: app.t("Pause"), onclick: ask("pause") }),
            resume: app.widgets.button({
                label: app.t("Resume"),
                kind: "primary",
                onclick: ask("resume"),
            }),
            stop: app.widgets.button({
                label: app.t("Stop"),
                kind: "stop",
                onclick: () => app.runs.stop(shown, done),
            }),
            save: app.widgets.button({ label: app.t("Save now"), onclick: ask("save") }),
            preview: app.widgets.button({ label: app.t("Preview now"), onclick: ask("preview") }),
        };
        const all = Object.values(made);
        return {
            all,
            set(run) {
                shown = run;
                const focused = all.includes(document.activeElement);
                made.resume.hidden = !run.can.resume;
                made.pause.hidden = run.can.resume;
                for (const [what, button] of Object.entries(made)) {
                    const reason = app.runs.reason(run, what);
                    if (button.disabled !== Boolean(reason)) button.disabled = Boolean(reason);
                    if (button.title !== reason) button.title = reason;
                }
                made.save.hidden = made.preview.hidden = run.job !== "train";
                // Pause became Resume under the finger: the focus goes along
                if (focused && document.activeElement === document.body)
                    (run.can.resume ? made.resume : made.pause).focus();
            },
        };
    }

    function handOverWords(handover, run) {
        if (!handover || !app.runs.isActive(run)) return "";
        const words = [handover.sentence];
        if (handover.before && handover.after) {
            words.push(
                app.t("Free graphics memory: {before} before, {after} after the model left.", {
                    before: app.size(handover.before.free),
                    after: app.size(handover.after.free),
                }),
            );
        }
        return app.sentences(words);
    }

    // --- notices ---------------------------------------------------------------------------------------------------------------------

    function noticesOf(run, done) {
        return [
            run.failure
                ? app.widgets.notice(
                      "error",
                      run.failure.message,
                      run.failure.hint,
                      goOnButton(run, done),
                      app.widgets.button({
                          label: app.t("Copy report"),
                          onclick: () => app.runs.copyReport(run),
                      }),
                  )
                : null,
            run.job === "train" && ["finished", "stopped"].includes(run.status)
                ? endNotice(run, done)
                : null,
            warnings(run),
        ];
    }

    function goOnButton(run, done) {
        if (!run.can.continue && !run.can.further) return null;
        return app.widgets.button({
            label: run.can.further ? app.t("Train further") : app.t("Continue"),
            onclick: () => app.runs.goOn(run, done),
        });
    }

    function warnings(run) {
        const shown = run.warnings.map((warning) =>
            app.widgets.notice("warning", warning.message, warning.hint),
        );
        if (shown.length < 3) return shown;
        return el(
            "details",
            {},
            el("summary", {}, app.count(shown.length, "{count} warning", "{count} warnings")),
            shown,
        );
    }

    function endNotice(run, done) {
        const place = el("div", { class: "lora-trainer-live-end" });
        const saved = app.widgets.button({
            label: app.t("Saved steps"),
            onclick: () => app.runs.showSaved(run, done),
        });
        if (!run.lora) {
            const none = () => {
                if (run.can.continue)
                    app.fill(
                        place,
                        el("div", { class: "lora-trainer-row" }, goOnButton(run, done)),
                    );
            };
            if (!(run.step > 0)) none();
            else
                app.runs
                    .newestOf(run)
                    .then(
                        (lora) =>
                            lora
                                ? app.fill(
                                      place,
                                      lora.delivered
                                          ? readyNotice(run, lora, done, saved)
                                          : keptNotice(run, lora, done, saved),
                                  )
                                : none(),
                        none,
                    );
            return place;
        }
        app.runs.loraOf(run).then(
            (lora) => {
                if (lora) app.fill(place, readyNotice(run, lora, done, saved));
                else
                    app.fill(
                        place,
                        app.widgets.notice(
                            "info",
                            app.t("The LoRA {name} is no longer in the LoRA folder.", {
                                name: run.lora,
                            }),
                            "",
                            saved,
                            goOnButton(run, done),
                        ),
                    );
            },
            () =>
                app.fill(
                    place,
                    app.widgets.notice(
                        "done",
                        app.t("Your LoRA is ready: {name}", { name: run.lora }),
                        "",
                        saved,
                    ),
                ),
        );
        return place;
    }

    /** A run that was stopped has a file of what it learned, and a picture of it where one was made: what can be done with it, there and then. */
    function keptNotice(run, lora, done, saved) {
        const notice = app.widgets.notice(
            "info",
            app.t("What was learned is kept."),
            app.t("Try it, put it into the LoRA folder, or go on training."),
            app.widgets.button({ label: app.t("Try it"), onclick: () => app.runs.tryLora(lora) }),
            app.widgets.button({
                label: app.t("Put into the LoRA folder"),
                onclick: () => app.runs.deliver(lora, done),
            }),
            goOnButton(run, done),
            saved,
        );
        return lora.picture
            ? el(
                  "div",
                  { class: "lora-trainer-live-kept" },
                  el("img", {
                      src: lora.picture,
                      alt: app.t("Step {step}", { step: lora.step }),
                      class: "lora-trainer-run-picture",
                  }),
                  notice,
              )
            : notice;
    }

    function readyNotice(run, lora, done, saved) {
        const tag = el("code", { class: "lora-trainer-tag" }, lora.tag);
        const send = () =>
            app.host.send("txt2img", {
                prompt:
                    app.host.prompts("txt2img").positive.value +
                    app.tags.addition(app.host.prompts("txt2img").positive.value, lora.tag).text,
            });
        const notice = app.widgets.notice(
            "done",
            app.t("Your LoRA is ready: {name}", { name: lora.name }),
            app.t("It lies in the WebUI's LoRA folder as {file}. In a prompt:", {
                file: lora.file,
            }),
            app.widgets.button({ label: app.t("Copy"), onclick: () => app.copy(lora.tag) }),
            app.widgets.button({ label: app.t("Try it"), onclick: () => app.runs.tryLora(lora) }),
            app.widgets.button({ label: app.t("Send to txt2img"), onclick: send }),
            goOnButton(run, done),
            saved,
        );
        notice.children[1].after(el("p", {}, tag));
        return notice;
    }

    // --- previews --------------------------------------------------------------------------------------------------------------------

    function pictureOf(preview) {
        const strength = preview.strength === null ? "" : app.tags.format(preview.strength);
        return {
            url: preview.url,
            note: preview.prompt,
            kind: preview.strength + preview.prompt,
            label: preview.step
                ? app.t("Step {step}, strength {strength}", { step: preview.step, strength })
                : app.t("Before training, strength {strength}", { strength }),
        };
    }

    /** What stands where there is none. */
    function noPreviews(run) {
        if (!app.runs.isActive(run) && run.status !== "queued")
            return app.t("This run has made no previews.");
        return run.has_preview_prompts
            ? app.t("Previews appear here during the training.")
            : app.t("No preview prompts are set. Preview now makes a picture at once.");
    }

    const strengthOf = (preview) =>
        preview.strength === null
            ? ""
            : app.t("Strength {strength}", { strength: app.tags.format(preview.strength) });

    /** Newest step first; a step's pictures stand together. */
    function previewGrid() {
        const place = el("div", { class: "lora-trainer-previews" });
        const compare = app.widgets.button({
            label: app.t("Compare"),
            onclick: () => app.viewer.compare(pictures),
        });
        const head = el(
            "div",
            { class: "lora-trainer-live-head" },
            el("h4", {}, app.t("Previews")),
            compare,
        );
        const element = el("div", { class: "lora-trainer-previews-box" }, head, place);
        let pictures = [];
        return {
            element,
            set(previews, empty) {
                redraw(place, JSON.stringify([previews, previews.length ? "" : empty]), () => {
                    pictures = previews.map(pictureOf);
                    compare.hidden = pictures.length < 2;
                    if (!previews.length) return el("p", { class: "lora-trainer-help" }, empty);
                    const steps = [...new Set(previews.map((preview) => preview.step))].sort(
                        (a, b) => b - a,
                    );
                    return steps.map((step) =>
                        el(
                            "div",
                            { class: "lora-trainer-previews-step" },
                            el(
                                "h5",
                                {},
                                step ? app.t("Step {step}", { step }) : app.t("Before training"),
                            ),
                            el(
                                "div",
                                { class: "lora-trainer-previews-row" },
                                previews.map((preview, at) =>
                                    preview.step === step
                                        ? app.viewer.thumbnail(
                                              pictures[at],
                                              () => app.viewer.open(pictures, at),
                                              strengthOf(preview),
                                          )
                                        : null,
                                ),
                            ),
                        ),
                    );
                });
            },
        };
    }

    app.live.buttons = runButtons;
    app.live.put = put;
    app.live.redraw = redraw;
})((window.loraTrainer = window.loraTrainer || {}));
