/* "Crop into a new dataset": pictures cut and resized to a training size, into a dataset of their own. The originals stay as they are. */
(function (app) {
    "use strict";

    const MILLISECONDS = 700;
    const el = (...all) => app.el(...all);
    const bench = (app.workbench = app.workbench || {});
    const dataset = (app.dataset = app.dataset || {});
    const pause = () =>
        new Promise((resolve) => {
            setTimeout(resolve, MILLISECONDS);
        });

    async function open() {
        await bench.page.saveAll();
        const wish = { size: 512, buckets: false, subject: true };
        const targets = bench.targets();
        const name = app.widgets.text({ value: "", maxlength: 100 });
        const size = app.widgets.select({
            value: "512",
            options: [
                { value: "512", label: app.t("512 (SD 1.5)") },
                { value: "768", label: app.t("768 (SD 2)") },
                { value: "1024", label: app.t("1024 (SDXL)") },
            ],
            onchange: (value) => {
                wish.size = Number(value);
                suggest();
            },
        });
        const shape = app.widgets.select({
            value: "square",
            options: [
                { value: "square", label: app.t("Squares") },
                { value: "buckets", label: app.t("The nearest training shape of each image") },
            ],
            onchange: (value) => {
                wish.buckets = value === "buckets";
            },
        });
        const subject = bench.flag(
            bench.checkbox(true, (value) => {
                wish.subject = value;
            }),
            app.t("Keep the subject in the cut"),
            app.t("Otherwise the middle of the picture is kept."),
        );
        const place = el("div", { "aria-live": "polite" });
        const form = el(
            "div",
            { class: "lora-trainer-bench-form" },
            el(
                "p",
                { class: "lora-trainer-help" },
                app.t(
                    "Training crops by itself. This is for seeing and choosing the cuts; the originals stay as they are, and the captions go along.",
                ),
            ),
            app.widgets.labelled(app.t("In"), targets.element),
            app.widgets.labelled(app.t("Size"), size),
            app.widgets.labelled(app.t("Shape"), shape),
            subject,
            app.widgets.labelled(app.t("Name of the new dataset"), name),
            place,
        );
        let copy = null;
        function suggest() {
            name.value = app.t("{name} {size}", { name: dataset.chosen().name, size: wish.size });
        }
        suggest();

        async function begin() {
            copy = await app.api.post(dataset.path("crop-copy"), {
                ...wish,
                name: name.value,
                select: targets.select(),
            });
            const progress = app.widgets.progress(app.t("Cropping"));
            const stop = app.widgets.button({
                label: app.t("Stop"),
                onclick: async () => {
                    copy = await app.api.post("crop-copies/" + copy.id + "/stop", {});
                },
            });
            app.fill(
                place,
                el("div", { class: "lora-trainer-bench-progress" }, progress.element, stop),
            );
            while (copy.state === "running") {
                progress.set(
                    copy.done,
                    copy.total,
                    app.t("{done} of {count} images", {
                        done: app.number(copy.done),
                        count: app.number(copy.total),
                    }),
                );
                await pause();
                copy = await app.api.get("crop-copies/" + copy.id);
            }
            await dataset.refresh();
            app.fill(
                place,
                result(),
                bench.notes(copy.notes.map((note) => app.sentences(note.message, note.hint))),
            );
            return false;
        }

        function result() {
            if (copy.state === "failed")
                return app.widgets.notice("error", copy.error.message, copy.error.hint);
            const words =
                copy.state === "done"
                    ? app.count(
                          copy.done,
                          "{count} image in the new dataset",
                          "{count} images in the new dataset",
                      )
                    : app.t("Stopped after {done} of {count} images.", {
                          done: app.number(copy.done),
                          count: app.number(copy.total),
                      });
            return app.widgets.notice(
                copy.state === "done" ? "done" : "warning",
                words,
                "",
                copy.dataset
                    ? app.widgets.button({
                          label: app.t("Go to the new dataset"),
                          kind: "primary",
                          onclick: () => {
                              dialog.close();
                              dataset.choose(copy.dataset);
                          },
                      })
                    : null,
            );
        }

        const dialog = app.widgets.dialog({
            title: app.t("Crop into a new dataset"),
            body: form,
            actions: [
                { label: app.t("Close") },
                { label: app.t("Crop"), kind: "primary", onclick: begin },
            ],
        });
    }

    bench.crop = { open };
})((window.loraTrainer = window.loraTrainer || {}));
