/* What can be done with a run besides watching it: words for its status, and the dialogs of its buttons.
 *
 * A run comes as the routes show it (webui/present.py). What was done is told through `done()`, so that the section reads the runs again. */
(function (app) {
    "use strict";

    const el = (...all) => app.el(...all);
    const ACTIVE = ["starting", "running", "pausing", "paused", "stopping"];

    const route = (run, what) => "runs/" + encodeURIComponent(run.id) + (what ? "/" + what : "");

    const isActive = (run) => ACTIVE.includes(run.status);

    function statusWords(run) {
        switch (run.status) {
            case "queued":
                return app.t("Waiting");
            case "starting":
                return app.t("Starting");
            case "running":
                return run.phase || app.t("Running");
            case "pausing":
                return app.t("Pausing");
            case "paused":
                return app.t("Paused");
            case "stopping":
                return app.t("Stopping");
            case "finished":
                return app.t("Finished");
            case "stopped":
                return app.t("Stopped");
            case "failed":
                return app.t("Failed");
            default:
                return app.t("Ended unexpectedly");
        }
    }

    /** Why a button cannot be pressed now; empty when it can. */
    function reason(run, what) {
        if (run.can[what]) return "";
        if (!isActive(run)) return app.t("This run is not at work now.");
        if (run.status === "starting") return app.t("It is still starting.");
        if (run.status === "stopping") return app.t("It is stopping already.");
        if (run.status === "paused" || run.status === "pausing")
            return app.t("Press Resume first.");
        return app.t("Wait for the first steps.");
    }

    const isLocal = () => !app.store.get("home").host.remote;

    // --- asking ----------------------------------------------------------------------------------------------------------------------

    const ask = (run, what, done) => app.api.post(route(run, "ask"), { what }).then(done);

    async function stop(run, done) {
        const sure = await app.widgets.confirm({
            title: app.t("Stop {name}?", { name: run.name }),
            kind: "stop",
            label: app.t("Stop and keep"),
            message: app.t(
                "What was learned so far is kept as a LoRA file, and you can continue the training later.",
            ),
        });
        if (sure) await ask(run, "stop", done);
    }

    /** A failed or stopped run goes on from where it was; a finished one needs a new number of steps. */
    async function goOn(run, done) {
        if (!run.can.further) {
            await app.api.post(route(run, "continue"), { changes: {} }).then(done);
            return;
        }
        const steps = el("input", {
            type: "number",
            class: "lora-trainer-input",
            min: run.step_count + 1,
            step: 1,
            value: String(Math.round(run.step_count * 1.5)),
        });
        steps.addEventListener("keydown", (event) => event.stopPropagation());
        const place = el("div");
        app.widgets.dialog({
            title: app.t("Train {name} further", { name: run.name }),
            body: [
                app.widgets.labelled(app.t("Train to step"), steps, {
                    help: app.t(
                        "It has {count} steps now. The training goes on from there, and a new LoRA file is made.",
                        { count: run.step_count },
                    ),
                }),
                place,
            ],
            actions: [
                { label: app.t("Cancel") },
                {
                    label: app.t("Continue training"),
                    kind: "primary",
                    onclick: async () => {
                        try {
                            done(
                                await app.api.post(route(run, "continue"), {
                                    changes: { max_train_steps: Number(steps.value) },
                                }),
                            );
                        } catch (problem) {
                            app.fill(place, app.widgets.problem(problem));
                            return false;
                        }
                        return true;
                    },
                },
            ],
        });
    }

    async function remove(run, done) {
        const sure = await app.widgets.confirm({
            title: app.t("Delete {name}?", { name: run.name }),
            kind: "stop",
            label: app.t("Move to the trash"),
            message: app.t(
                "The run's folder goes to the trash of LoRA Trainer's data folder. A LoRA that was delivered stays in the LoRA folder.",
            ),
        });
        if (!sure) return;
        const { trash } = await app.api.post(route(run, "delete"), {});
        done();
        app.widgets.toast(app.t("{name} is in the trash.", { name: run.name }), {
            seconds: 15,
            action: {
                label: app.t("Undo"),
                onclick: () =>
                    app.api.post("trash/" + encodeURIComponent(trash) + "/restore", {}).then(done),
            },
        });
    }

    /** What was deleted can be deleted for good, by whoever sits at this machine. Hidden while nothing is there. */
    function trashRow(done) {
        const words = el("span", { class: "lora-trainer-help" });
        const button = app.widgets.button({
            label: app.t("Empty the trash"),
            onclick: () => emptyTrash(done),
        });
        const element = el(
            "div",
            { class: "lora-trainer-row lora-trainer-trash", hidden: true },
            words,
            button,
        );
        return {
            element,
            async update() {
                if (!isLocal()) return;
                const { count, size } = await app.api.get("trash");
                element.hidden = !count;
                words.textContent = trashWords(count, size);
            },
        };
    }

    const trashWords = (count, size) =>
        app.t("In the trash: {what}, {size}", {
            what: app.count(count, "{count} deleted item", "{count} deleted items"),
            size: app.size(size),
        });

    async function emptyTrash(done) {
        const { count, size } = await app.api.get("trash");
        const sure = await app.widgets.confirm({
            title: app.t("Empty the trash?"),
            kind: "stop",
            label: app.t("Delete for good"),
            message: app.sentences(
                trashWords(count, size),
                app.t("They cannot be taken back afterwards. LoRAs in the LoRA folder stay."),
            ),
        });
        if (!sure) return;
        const left = await app.api.post("trash/empty", {});
        done();
        if (left.count)
            app.widgets.toast(
                app.t("Some files are in use by another program and stay in the trash."),
                { severity: "warning" },
            );
        else app.widgets.toast(app.t("The trash is empty."), { severity: "done" });
    }

    // --- looking ---------------------------------------------------------------------------------------------------------------------

    /** What a run was trained with, in the form's words, and as the file that the command line takes. */
    async function showSettings(run) {
        const text = await app.api.get(route(run, "config"));
        const draft =
            run.job === "train" ? await app.api.get(route(run, "draft")).catch(() => null) : null;
        const file = [
            el("pre", { class: "lora-trainer-pre", tabindex: "0" }, text),
            app.widgets.button({ label: app.t("Copy"), onclick: () => app.copy(text) }),
        ];
        const fact = (label, value) =>
            value ? el("div", {}, el("dt", {}, label), el("dd", {}, value)) : null;
        const use = () => {
            app.useDraft(draft);
            app.open("settings");
            app.widgets.toast(
                app.t("These are the settings of {name}. Change what you like, then start.", {
                    name: run.name,
                }),
                { severity: "done" },
            );
        };
        app.widgets.dialog({
            title: app.t("Settings of {name}", { name: run.name }),
            wide: !draft,
            body: draft
                ? [
                      el(
                          "dl",
                          { class: "lora-trainer-run-settings" },
                          fact(app.t("Checkpoint"), run.checkpoint),
                          fact(app.t("Images"), run.dataset),
                          app
                              .settingWords(draft.settings)
                              .map(({ label, value }) => fact(label, value)),
                      ),
                      el(
                          "details",
                          { class: "lora-trainer-log-box" },
                          el("summary", {}, app.t("All of them, as a file for the command line")),
                          file,
                      ),
                  ]
                : file,
            actions: [
                ...(draft ? [{ label: app.t("Use these settings"), onclick: use }] : []),
                { label: app.t("Close"), kind: "primary" },
            ],
        });
    }

    async function copyReport(run) {
        const { version, host } = app.store.get("home");
        const log = await app.api.get(route(run, "log"));
        const lines = [
            "LoRA Trainer " + version + ", " + host.name + " " + host.version + ", " + host.device,
            run.name +
                ": " +
                run.status +
                ", step " +
                run.step +
                " / " +
                run.step_count +
                ", " +
                (run.family || "?"),
            ...(run.failure ? [run.failure.message, run.failure.hint] : []),
            "",
            ...log.trimEnd().split("\n").slice(-80),
        ];
        await app.copy(lines.join("\n"));
    }

    /** Try a LoRA: the section "try" takes it from the store. */
    function tryLora(lora) {
        app.store.set("try", lora.id);
        app.open("try");
    }

    /** The delivered LoRA of a run; null when there is none (any more). */
    async function loraOf(run) {
        const loras = await app.api.get("loras");
        return (
            loras.find((lora) => lora.delivered && lora.name === run.lora) ||
            loras.find((lora) => lora.delivered && lora.run === run.id) ||
            null
        );
    }

    /** What a run has learned most: the LoRA it has delivered, else the last step that was saved; null when there is nothing. */
    async function newestOf(run) {
        const loras = (await app.api.get("loras")).filter((lora) => lora.run === run.id);
        return (
            loras.find((lora) => lora.delivered && lora.name === run.lora) ||
            loras.sort((a, b) => b.step - a.step)[0] ||
            null
        );
    }

    /** Put a saved step into the LoRA folder. */
    async function deliver(lora, done) {
        const delivered = await app.api.post("loras/" + lora.id + "/deliver", {});
        announceDelivery();
        app.widgets.toast(app.t("It is in the LoRA folder as {name}.", { name: delivered.name }), {
            severity: "done",
        });
        if (done) done();
        return delivered;
    }

    /** What a run has saved: each can be tried, or put into the LoRA folder. */
    async function showSaved(run, done) {
        const place = el("div");
        let dialog = null;
        const draw = async () => {
            const found = (await app.api.get("loras")).filter((lora) => lora.run === run.id);
            app.fill(
                place,
                found.length
                    ? el("ul", { class: "lora-trainer-saved" }, found.map(line))
                    : el("p", {}, app.t("This run has saved no LoRA file yet.")),
            );
        };
        const line = (lora) =>
            el(
                "li",
                { class: "lora-trainer-row" },
                picture(lora.picture),
                el(
                    "div",
                    { class: "lora-trainer-run-words lora-trainer-saved-name" },
                    el(
                        "strong",
                        {},
                        lora.step ? app.t("Step {step}", { step: lora.step }) : lora.name,
                    ),
                    el(
                        "span",
                        { class: "lora-trainer-help" },
                        [
                            lora.step ? lora.name : "",
                            lora.delivered ? app.t("in the LoRA folder") : "",
                        ]
                            .filter(Boolean)
                            .join(" \u00b7 "),
                    ),
                ),
                app.widgets.button({
                    label: app.t("Try it"),
                    onclick: () => {
                        dialog.close();
                        tryLora(lora);
                    },
                }),
                lora.delivered
                    ? null
                    : app.widgets.button({
                          label: app.t("Put into the LoRA folder"),
                          onclick: async () => {
                              await deliver(lora, done);
                              await draw();
                          },
                      }),
            );
        await draw();
        dialog = app.widgets.dialog({
            title: app.t("Saved steps of {name}", { name: run.name }),
            body: place,
            fit: true,
            actions: [{ label: app.t("Close"), kind: "primary" }],
        });
    }

    /** A small picture, or its empty place. */
    const picture = (address) =>
        address
            ? el("img", {
                  src: address,
                  alt: "",
                  loading: "lazy",
                  width: 64,
                  height: 64,
                  class: "lora-trainer-run-picture",
              })
            : el("span", { class: "lora-trainer-run-picture" });

    /** Whoever shows LoRAs reads them again. */
    function announceDelivery() {
        app.store.set("delivered", (app.store.get("delivered") || 0) + 1);
        app.host.redrawCards();
    }

    const openFolder = (run) => app.api.post(route(run, "folder"), {});

    app.runs = {
        route,
        trashRow,
        isActive,
        statusWords,
        reason,
        isLocal,
        ask,
        stop,
        goOn,
        remove,
        showSettings,
        copyReport,
        tryLora,
        loraOf,
        newestOf,
        deliver,
        picture,
        showSaved,
        announceDelivery,
        openFolder,
    };
})((window.loraTrainer = window.loraTrainer || {}));
