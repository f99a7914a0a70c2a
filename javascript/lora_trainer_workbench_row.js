/* One picture and the box of its caption: saved when the box is left, compared with what the server has. Beside it what is known of it: its length in
 * tokens, who wrote it, whether it was reviewed, what the check found, each with the button that mends it. */
(function (app) {
    "use strict";

    const el = (...all) => app.el(...all);
    const bench = (app.workbench = app.workbench || {});
    const dataset = (app.dataset = app.dataset || {});

    /** `base` is what the server said last; what is typed is compared with it when it is saved. */
    bench.row = function (first) {
        const { tidy, words, hasTrigger } = app.captions;
        const id = app.store.get("dataset");
        const kept = app.unsaved.get(id, first.key);
        // what was typed into another box for this image, and has not arrived
        const typed = kept && tidy(kept.text) !== first.caption ? kept : null;
        if (typed) app.unsaved.tryAgain(typed);
        else if (kept) app.unsaved.forget(id, first.key);
        let item = first,
            base = typed ? typed.was : first.caption,
            saving = null,
            conflict = false,
            touched = false;
        const reviewedAddress = dataset.path("reviewed");
        const box = app.widgets.text({
            value: typed ? typed.text : base,
            rows: 4,
            label: app.t("Caption of {name}", { name: item.name }),
            placeholder: app.t("What is in the picture?"),
            oninput: heard,
        });
        const state = el("span", { class: "lora-trainer-caption-state", role: "status" });
        const facts = el("span", { class: "lora-trainer-help" });
        const tokens = bench.tokens.line(() => item);
        const remarks = el("ul", { class: "lora-trainer-caption-remarks" });
        const choice = el("div");
        const offered = bench.complete(box, heard);
        const picture = el(
            "button",
            {
                type: "button",
                class: "lora-trainer-caption-picture",
                tabindex: "-1",
                "aria-label": app.t("Enlarge {name}", { name: item.name }),
                onclick: enlarge,
            },
            pictured(),
        );
        const select = bench.checkbox(bench.isSelected(item.key));
        select.setAttribute("aria-label", app.t("Select {name}", { name: item.name }));
        select.title = app.t("Alt+X in the caption's box does the same");
        // Tab goes from box to box; each of these has its key
        select.tabIndex = -1;
        select.addEventListener("click", (event) =>
            bench.toggle(item.key, select.checked, event.shiftKey),
        );
        const reviewed = bench.checkbox(Boolean(item.reviewed), (chosen) =>
            review(chosen).catch(app.widgets.toastProblem),
        );
        reviewed.id = app.id("reviewed");
        reviewed.title = app.t("Alt+R in the caption's box does the same");
        reviewed.tabIndex = -1;
        const element = el(
            "div",
            { class: "lora-trainer-caption-row", dataset: { key: item.key } },
            el("div", { class: "lora-trainer-caption-side" }, picture, select),
            el(
                "div",
                { class: "lora-trainer-caption-text" },
                el(
                    "div",
                    { class: "lora-trainer-row lora-trainer-between" },
                    el("b", { class: "lora-trainer-cell-name", title: item.name }, item.name),
                    state,
                ),
                el("div", { class: "lora-trainer-caption-box" }, box, offered),
                choice,
                tokens.tail,
                el(
                    "div",
                    { class: "lora-trainer-row lora-trainer-between lora-trainer-caption-foot" },
                    facts,
                    el(
                        "span",
                        { class: "lora-trainer-row" },
                        bench.link(app.t("Fields"), () => bench.words.compose(api), {
                            tabindex: "-1",
                            "aria-label": app.t("Fields of {name}", { name: item.name }),
                            title: app.t("F2 in the caption's box does the same"),
                        }),
                        el(
                            "span",
                            { class: "lora-trainer-bench-flag" },
                            reviewed,
                            el("label", { for: reviewed.id }, app.t("Reviewed")),
                        ),
                    ),
                ),
                remarks,
            ),
        );

        function goOn() {
            const next = element.nextElementSibling;
            if (next) next.querySelector("textarea").focus();
            else bench.page.next().catch(app.widgets.toastProblem);
        }

        /** A comma behind the last tag waits for the next one, which does not come. */
        function finish() {
            const text = box.value.replace(/[\s,\uff0c]+$/, "");
            if (isUnsaved() && tidy(text) !== tidy(box.value)) {
                box.value = text;
                heard();
            }
        }

        box.addEventListener("blur", () => {
            finish();
            save();
        });
        // a large picture comes into view with its box
        box.addEventListener("focus", () => {
            if (bench.picturesAreLarge()) element.scrollIntoView({ block: "nearest" });
        });
        box.addEventListener("keydown", (event) => {
            if (event.isComposing) return;
            if (event.key === "Enter" && (event.ctrlKey || event.metaKey)) {
                event.preventDefault();
                finish();
                approve().catch(app.widgets.toastProblem);
                goOn();
            } else if (event.key === "PageDown") {
                event.preventDefault();
                goOn();
            } else if (event.key === "PageUp") {
                event.preventDefault();
                const before = element.previousElementSibling;
                if (before) before.querySelector("textarea").focus();
            } else if (event.altKey && !event.ctrlKey && event.code === "KeyX") {
                event.preventDefault();
                bench.toggle(item.key, !bench.isSelected(item.key), event.shiftKey);
            } else if (event.altKey && !event.ctrlKey && event.code === "KeyR") {
                event.preventDefault();
                review(!reviewed.checked).catch(app.widgets.toastProblem);
            } else if (event.key === "F2") {
                event.preventDefault();
                bench.words.compose(api);
            } else if (event.key === "Escape" && !conflict) {
                box.value = base;
                heard();
            } else if (event.key === "Enter" && !event.shiftKey && !base.includes("\n"))
                event.preventDefault(); // most captions are one line
        });

        /** The thumbnail, or the picture itself where large ones are wanted; both are fetched when they are scrolled to. */
        function pictured() {
            return dataset.thumbnail(
                bench.picturesAreLarge() ? { ...item, thumbnail: item.picture } : item,
            );
        }

        function heard() {
            note();
            mark("", "");
            describe();
            tokens.hear(tidy(box.value));
        }

        function enlarge() {
            const { items } = bench.page.pages.answer;
            const shown = items.find((one) => one.key === item.key);
            dataset.enlarge(shown ? items : [item], shown || item);
        }

        function mark(kind, text) {
            state.dataset.kind = kind;
            state.textContent = text;
        }

        function describe() {
            const text = tidy(box.value),
                word = bench.trigger();
            // a person needs to know only where captions come from several places
            const file = bench.hasSeveralSources()
                ? app.t("from {file}", { file: item.caption_file })
                : "";
            const sources = {
                metadata: file,
                text: file,
                folder_name: app.t("from the folder's name"),
                trigger_word: app.t("the trigger word"),
            };
            app.fill(
                facts,
                tokens.count,
                [
                    app.count(words(text), "{count} word", "{count} words"),
                    text === base && text.includes("\n") && item.captions === 1
                        ? app.t("a list of tags, one a line")
                        : "",
                    text === base && item.captions > 1
                        ? app.t("{count} captions, one a line: each time one of them is drawn", {
                              count: app.number(item.captions),
                          })
                        : "",
                    text === base && item.source ? sources[item.source] : "",
                    text === base && item.author === "machine"
                        ? app.t("written by a captioner")
                        : "",
                    word && text && !hasTrigger(text, word)
                        ? app.t("trained as \u201c{word}, \u2026\u201d", { word })
                        : "",
                ]
                    .filter(Boolean)
                    .join(" \u00b7 "),
            );
            const found = item.findings.filter((finding) => finding.kind !== "no-caption");
            app.fill(
                remarks,
                found.map((finding) => bench.check.line(finding, item)),
            );
        }

        const isUnsaved = () => tidy(box.value) !== base;

        /** Kept beyond this box, until the server has it. */
        function note() {
            if (isUnsaved()) app.unsaved.note(id, item, box.value, base);
            else if (!saving) app.unsaved.forget(id, item.key);
        }

        async function save() {
            if (saving) return saving;
            if (conflict || !isUnsaved()) return null;
            saving = send(app.unsaved.note(id, item, box.value, base));
            try {
                await saving;
            } finally {
                saving = null;
            }
            // typed on while it was being saved
            return document.activeElement !== box && isUnsaved() && state.dataset.kind === "saved"
                ? save()
                : null;
        }

        async function send(entry) {
            const text = tidy(entry.text);
            mark("saving", app.t("Saving"));
            try {
                const before = base;
                const answer = await app.unsaved.send(entry);
                item = { ...item, ...answer };
                base = answer.caption;
                // what the server keeps may be tidier; what was typed since stays
                if (tidy(box.value) === text) box.value = base;
                note();
                settle(before);
            } catch (problem) {
                if (problem.status === 409) ask(text, problem.current);
                else mark("problem", app.t("Not saved: {reason}", { reason: problem.message }));
            }
        }

        function settle(before) {
            touched = true;
            mark("saved", app.t("Saved"));
            reviewed.checked = Boolean(item.reviewed);
            describe();
            tokens.hear(tidy(box.value));
            const card = dataset.chosen();
            if (!card || card.id !== id || !before === !base) return;
            const captioned = card.captioned + (base ? 1 : -1);
            dataset.update({ id: card.id, captioned });
            bench.page.showCounts(captioned, card.count);
        }

        async function review(wanted) {
            touched = true;
            reviewed.checked = wanted;
            await app.api.post(reviewedAddress, { select: { keys: [item.key] }, reviewed: wanted });
            item = { ...item, reviewed: wanted };
        }

        /** The caption is right as it stands: saved, and marked. */
        async function approve() {
            await save();
            if (base && !conflict && !item.reviewed && "reviewed" in item) await review(true);
        }

        /** Two texts, one place: the visitor chooses. */
        function ask(mine, theirs) {
            conflict = true;
            mark("problem", app.t("Not saved"));
            const done = () => {
                conflict = false;
                app.fill(choice);
            };
            app.fill(
                choice,
                el(
                    "div",
                    { class: "lora-trainer-notice lora-trainer-notice-warning", role: "alert" },
                    el(
                        "p",
                        {},
                        app.t("Someone else changed this caption meanwhile. Which one is to stay?"),
                    ),
                    el(
                        "dl",
                        { class: "lora-trainer-two-texts" },
                        el("dt", {}, app.t("Yours")),
                        el("dd", {}, mine || app.t("(empty)")),
                        el("dt", {}, app.t("Theirs")),
                        el("dd", {}, theirs || app.t("(empty)")),
                    ),
                    el(
                        "div",
                        { class: "lora-trainer-row" },
                        app.widgets.button({
                            label: app.t("Keep mine"),
                            onclick: async () => {
                                done();
                                base = theirs;
                                await save();
                            },
                        }),
                        app.widgets.button({
                            label: app.t("Take theirs"),
                            onclick: () => {
                                done();
                                base = theirs;
                                box.value = theirs;
                                note();
                                mark("", "");
                                describe();
                                bench.page.pages.load();
                            },
                        }),
                    ),
                ),
            );
        }

        const api = {
            element,
            save,
            describe,
            isUnsaved,
            item: () => item,
            text: () => tidy(box.value),
            /** Put a text into the box and save it. */
            write(text) {
                box.value = text;
                note();
                describe();
                return save();
            },
            showSelected(chosen) {
                select.checked = chosen;
                element.classList.toggle("lora-trainer-caption-selected", chosen);
            },
            /** Save what is left unsaved in a box where nobody types. */
            catchUp() {
                const entry = app.unsaved.get(id, item.key);
                return isUnsaved() &&
                    document.activeElement !== box &&
                    (!entry || app.unsaved.isWorthSending(entry))
                    ? save()
                    : null;
            },
            isBusy: () => Boolean(saving) || conflict || isUnsaved(),
            /** Whether something was saved since the visitor asked for this page. */
            isTouched: () => touched,
            isEmpty: () => !base,
            isReviewed: () => reviewed.checked,
            /** Pictures are wanted in another size. */
            redraw() {
                app.fill(picture, pictured());
            },
            /** What the server says now. What is being typed stays; saving it will compare. */
            take(now, quietly) {
                if (!quietly) touched = false;
                if (saving || conflict) return;
                const untouched = !isUnsaved();
                const repainted = now.thumbnail !== item.thumbnail;
                item = now;
                if (repainted) app.fill(picture, pictured());
                reviewed.checked = Boolean(now.reviewed);
                if (untouched) {
                    if (base !== now.caption) {
                        base = now.caption;
                        box.value = base;
                        mark("", bench.mark());
                    }
                    describe();
                    tokens.hear(base);
                }
            },
        };
        describe();
        tokens.hear(base);
        api.showSelected(bench.isSelected(item.key));
        return api;
    };
})((window.loraTrainer = window.loraTrainer || {}));
