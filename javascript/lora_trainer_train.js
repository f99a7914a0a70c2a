/* The section "train": Start and Queue, the live view of one run, the queue in its order, and every run there is.
 *
 * The server holds the truth: one small question ("pulse") tells whether anything has changed, and only then more is asked. It is asked every second
 * while a run is at work or about to be, and not at all when nothing goes on or the tab cannot be seen. */
(function (app) {
    "use strict";

    const el = (...all) => app.el(...all);
    const SECONDS_ACTIVE = 1, SECONDS_LOST = 3;
    const MOST_POINTS = 1200;

    /** What was learned from the server; it outlives a redrawing of the page. */
    const known = { pulse: null, revision: null, runs: [], delivered: null, chosen: null, settled: "", offset: 0, points: [] };
    let poll = null, view = null, page = null;

    const byId = (id) => known.runs.find((run) => run.id === id) || null;
    const changed = (run) => { if (run && run.id && run.status) choose(run.id); known.revision = null; known.settled = ""; if (poll) poll.wake(); };

    // --- asking the server -----------------------------------------------------------------------------------------------------------

    async function look() {
        try {
            known.pulse = await app.api.get("pulse");
            if (known.pulse.revision !== known.revision) await readRuns();
            takeActive();
            if (view && app.current() === "train") await readLive();
            if (view) view.connection(null);
        } catch (problem) {
            if (!(problem instanceof app.Problem)) throw problem;
            if (view) view.connection(problem);
            if (page) page.connection(problem);
            return SECONDS_LOST;
        }
        if (page) page.connection(null);
        summarize();
        // a run from a command line is in the list a moment before the server has taken it on
        return known.pulse.active.length || known.pulse.queued || known.runs.some(app.runs.isActive) ? SECONDS_ACTIVE : null;
    }

    async function readRuns() {
        const revision = known.pulse.revision;
        known.runs = (await app.api.get("runs")).runs;
        known.revision = revision;
        known.settled = "";
        const delivered = JSON.stringify(known.runs.map((run) => run.delivered).filter(Boolean).sort());
        if (known.delivered !== null && delivered !== known.delivered) app.runs.announceDelivery();
        known.delivered = delivered;
        // how quick this machine is may be known now, and which name is free
        if (app.replan) app.replan();
        if (page) { page.lists(); await page.trash(); }
    }

    /** The list of runs is read when it is another one; how far those at work are comes with every pulse. */
    function takeActive() {
        for (const now of known.pulse.active) {
            const run = byId(now.id);
            if (run) Object.assign(run, now);
        }
        if (page && known.pulse.active.length) page.lists();
    }

    /** The run to show: the chosen one, else what is at work, else the newest. */
    function shownRun() {
        return byId(known.chosen) || byId((known.pulse.active[0] || {}).id) || known.runs.find((run) => run.status !== "queued") || known.runs[0] || null;
    }

    function choose(id) {
        if (known.chosen === id) return;
        known.chosen = id;
        known.settled = "";
        app.store.set("run", id);
    }

    async function readLive() {
        const run = shownRun();
        if (!run) { view.hide(); return; }
        if (known.shown !== run.id) Object.assign(known, { shown: run.id, offset: 0, points: [], settled: "" });
        const wantsLog = view.wantsLog();
        const mark = run.id + wantsLog;
        if (known.settled === mark) return;
        const live = await app.api.get(app.runs.route(run, "live"), { offset: known.offset, log: wantsLog ? 1 : null });
        if (known.shown !== run.id || !view) return;
        known.offset = live.offset;
        known.points = thinned(live.whole ? live.points : known.points.concat(live.points));
        view.set(live, known.points);
        // the lists say the same as the view, also where the run's turn has come since they were read
        const listed = byId(live.run.id);
        if (listed && listed.status !== live.run.status) { Object.assign(listed, live.run); page.lists(); }
        page.other(live.run);
        // what has ended changes no more; asking again waits for a new revision
        known.settled = app.runs.isActive(live.run) ? "" : mark;
    }

    /** Every second point, as often as needed; the newest stays. */
    function thinned(points) {
        while (points.length > MOST_POINTS) points = points.filter((_, at) => (points.length - 1 - at) % 2 === 0);
        return points;
    }

    function summarize() {
        const run = known.pulse.active[0] || known.runs.find(app.runs.isActive);
        if (!run) app.summary("train", known.pulse.queued ? app.count(known.pulse.queued, "{count} run waits", "{count} runs wait") : "");
        else app.summary("train", run.step_count && run.step ? app.t("{phase}, {share} %", { phase: app.runs.statusWords(run), share: Math.floor((run.step / run.step_count) * 100) }) : app.runs.statusWords(run));
    }

    // --- starting --------------------------------------------------------------------------------------------------------------------

    const draft = () => ({ dataset: app.store.get("dataset") || "", checkpoint: app.store.get("checkpoint") || "loaded", name: app.store.get("name") || "", settings: app.store.get("settings") || {} });

    /** Why Start cannot be pressed, and where that is mended; null when it can. */
    function obstacle() {
        const { setup } = app.store.get("home");
        const plan = app.plan();
        if (setup && setup.state !== "ready") return { text: app.t("Training is not set up yet."), section: null };
        if (!app.store.get("dataset")) return { text: app.t("Choose the images first."), section: "images", label: app.t("Go to the images") };
        const problem = plan && !plan.ok && plan.problems.find((found) => found.severity === "error");
        if (problem) return { text: problem.message, section: problem.field === "dataset" ? "images" : "settings", label: app.t("Show where") };
        return null;
    }

    function startCard() {
        const words = el("p");
        const reason = el("div", { class: "lora-trainer-row lora-trainer-start-reason" });
        const trouble = el("div");
        const connection = el("p", { class: "lora-trainer-hint lora-trainer-live-connection", role: "status" });
        let token = null;

        async function begin(when) {
            // a click that got no answer may have arrived: the same token cannot begin a second run
            token = token || app.random();
            try {
                const run = await app.api.post("runs", { ...draft(), token, when });
                token = null;
                app.fill(trouble);
                // what is at work stays in view; the list below shows the one that waits
                if (known.pulse && known.pulse.active.length) { changed(); app.widgets.toast(app.t("{name} waits in the queue.", { name: run.name }), { severity: "done" }); }
                else changed(run);
            } catch (problem) {
                if (!(problem instanceof app.Problem)) throw problem;
                if (problem.status) token = null;
                const others = (problem.problems || []).map((one) => el("li", {}, app.sentences(one.message, one.hint)));
                const notice = app.widgets.problem(problem);
                if (others.length > 1) notice.append(el("ul", {}, others));
                app.fill(trouble, notice);
            }
        }

        const start = app.widgets.button({ label: app.t("Start"), kind: "primary", onclick: () => begin("now") });
        const queue = app.widgets.button({ label: app.t("Add to the queue"), onclick: () => begin("queue") });
        const element = el("section", { class: "lora-trainer-card lora-trainer-start", "aria-label": app.t("Start the training") }, words, el("div", { class: "lora-trainer-row" }, start, queue, connection), reason, trouble);

        function draw() {
            const plan = app.plan();
            const found = obstacle();
            const busy = known.pulse && known.pulse.active.length;
            app.live.put(words, plan && plan.sentence ? plan.sentence : app.t("Trains a LoRA from your images with the settings you chose."));
            for (const button of [start, queue]) {
                button.disabled = Boolean(found);
                button.title = found ? found.text : "";
            }
            app.live.redraw(reason, JSON.stringify([found, Boolean(busy)]), () => (found
                ? [el("p", {}, found.text), found.section ? app.widgets.button({ label: found.label, onclick: () => app.open(found.section) }) : null]
                : el("p", { class: "lora-trainer-help" }, busy ? app.t("Something is being trained already: Start puts this run next, the queue puts it last.") : "")));
        }

        return { element, draw, connection: (problem) => app.live.put(connection, problem ? app.t("Connection lost, trying again ...") : "") };
    }

    // --- lists -----------------------------------------------------------------------------------------------------------------------

    function picture(run) {
        return run.picture ? el("img", { src: run.picture, alt: "", loading: "lazy", width: 64, height: 64, class: "lora-trainer-run-picture" }) : el("span", { class: "lora-trainer-run-picture" });
    }

    /** A button that keeps the focus when its list is drawn again, and says for whom it is: many are called "Show". */
    function mark(button, key, name) {
        button.dataset.key = key;
        button.setAttribute("aria-describedby", name);
        return button;
    }

    function queueRow(run, at, count) {
        const move = (to) => () => app.api.post(app.runs.route(run, "move"), { position: to }).then(() => changed());
        const name = app.id("queued");
        const key = (button, what) => mark(button, run.id + what, name);
        return el("li", { class: "lora-trainer-run" }, el("span", { class: "lora-trainer-run-number" }, String(at + 1)),
            el("div", { class: "lora-trainer-run-words" }, el("strong", { id: name }, run.name), el("span", { class: "lora-trainer-help" }, run.sentence)),
            el("div", { class: "lora-trainer-row" },
                key(app.widgets.button({ label: app.t("Move up"), disabled: at === 0, onclick: move(at - 1) }), "up"),
                key(app.widgets.button({ label: app.t("Move down"), disabled: at === count - 1, onclick: move(at + 1) }), "down"),
                key(app.widgets.button({ label: app.t("Take out"), title: app.t("Out of the queue; it stays in the list of runs."), onclick: () => app.api.post(app.runs.route(run, "unqueue"), {}).then(() => changed()) }), "out")));
    }

    function facts(run) {
        const steps = run.step_count ? app.t("{step} of {total} steps", { step: app.number(run.step), total: app.number(run.step_count) }) : "";
        const kind = run.job === "caption" ? app.t("Captions") : "";
        return [kind, app.runs.statusWords(run), run.changed ? app.when(run.changed) : "", steps, run.family ? run.family.toUpperCase() : ""].filter(Boolean).join(" \u00b7 ");
    }

    function runRow(run) {
        const name = app.id("run");
        const key = (button, what) => mark(button, run.id + what, name);
        const tryIt = async () => {
            const lora = await app.runs.loraOf(run);
            if (lora) app.runs.tryLora(lora); else await app.runs.showSaved(run, changed);
        };
        const more = el("div", { class: "lora-trainer-row lora-trainer-run-more" },
            app.widgets.button({ label: app.t("Settings"), onclick: () => app.runs.showSettings(run) }),
            run.job === "train" ? app.widgets.button({ label: app.t("Saved steps"), onclick: () => app.runs.showSaved(run, changed) }) : null,
            app.runs.isLocal() ? app.widgets.button({ label: app.t("Open folder"), onclick: () => app.runs.openFolder(run) }) : null,
            run.can.delete ? app.widgets.button({ label: app.t("Delete"), kind: "stop", onclick: () => app.runs.remove(run, changed) }) : null);
        return el("li", { class: "lora-trainer-run" }, picture(run),
            el("div", { class: "lora-trainer-run-words" }, el("strong", { id: name }, run.name), el("span", { class: "lora-trainer-help" }, facts(run))),
            el("div", { class: "lora-trainer-row" },
                key(app.widgets.button({ label: app.t("Show"), onclick: () => { choose(run.id); poll.wake(); view.element.scrollIntoView({ block: "nearest" }); } }), "show"),
                run.job === "train" && run.step > 0 ? key(app.widgets.button({ label: app.t("Try it"), onclick: tryIt }), "try") : null,
                run.can.continue || run.can.further
                    ? key(app.widgets.button({ label: run.can.further ? app.t("Train further") : app.t("Continue"), onclick: () => app.runs.goOn(run, changed) }), "go") : null,
                el("details", { class: "lora-trainer-run-details", dataset: { key: run.id + "more" } }, el("summary", { "aria-describedby": name }, app.t("More")), more)));
    }

    /** What a row is drawn from, but for its words: of a run at work those change every second. */
    function shape(run) {
        const { delete: remove, continue: goOn, further } = run.can;
        return app.runs.isActive(run) ? [run.id, run.name, run.job, run.status, run.step > 0, run.picture, run.family, remove, goOn, further] : run;
    }

    /** A list that is drawn again only when it is another one, and keeps the focus and what is unfolded. `words(run)`: what its row says. */
    function list(title, empty, words) {
        const rows = el("ul", { class: "lora-trainer-runs" });
        const element = el("section", { class: "lora-trainer-card", "aria-label": title }, el("h3", {}, title), rows);
        let drawn = null;
        return {
            element,
            set(runs, make) {
                const now = JSON.stringify(runs.map(shape));
                if (now === drawn) {
                    runs.forEach((run, at) => app.live.put(rows.children[at].querySelector(".lora-trainer-run-words .lora-trainer-help"), words(run)));
                    return;
                }
                drawn = now;
                const focused = rows.contains(document.activeElement) ? document.activeElement.dataset.key : null;
                const unfolded = new Set([...rows.querySelectorAll("details[open]")].map((details) => details.dataset.key));
                app.fill(rows, runs.length ? runs.map(make) : el("li", { class: "lora-trainer-help" }, empty));
                for (const details of rows.querySelectorAll("details")) details.open = unfolded.has(details.dataset.key);
                const again = focused && [...rows.querySelectorAll("[data-key]")].find((button) => button.dataset.key === focused);
                if (again && !again.disabled) again.focus();
                else if (again) again.parentElement.querySelector("button:not(:disabled)").focus();
            },
        };
    }

    // --- the section -----------------------------------------------------------------------------------------------------------------

    function draw(container) {
        const start = startCard();
        view = app.live(changed);
        const other = el("div");
        const queue = list(app.t("Queue"), "", (run) => run.sentence);
        const runs = list(app.t("Runs"), app.t("Runs appear here once you have started one."), facts);
        const trash = app.runs.trashRow(changed);
        runs.element.append(trash.element);
        Object.assign(known, { shown: null, settled: "", revision: null });
        page = {
            connection: start.connection,
            start: start.draw,
            trash: trash.update,
            lists() {
                const waiting = known.runs.filter((run) => run.status === "queued").sort((a, b) => a.position - b.position);
                queue.element.hidden = !waiting.length;
                queue.set(waiting, (run, at) => queueRow(run, at, waiting.length));
                runs.set(known.runs.filter((run) => run.status !== "queued"), runRow);
                start.draw();
            },
            /** Another run is at work than the one that is shown: say so. */
            other(shown) {
                const active = known.pulse.active.find((run) => run.id !== shown.id);
                const worth = active && !app.runs.isActive(shown) ? active : null;
                app.live.redraw(other, worth ? worth.id : "", () => (worth ? app.widgets.notice("info", app.t("{name} is being worked on now.", { name: worth.name }), "",
                    app.widgets.button({ label: app.t("Show"), onclick: () => { choose(worth.id); poll.wake(); } })) : []));
            },
        };
        queue.element.hidden = true;
        app.fill(container, start.element, other, view.element, queue.element, runs.element);
        start.draw();
        if (poll) poll.wake();
    }

    const start = () => { if (page) page.start(); };

    app.section({ id: "train", title: () => app.t("Train"), draw, shown() { start(); if (poll) poll.wake(); } });

    let subscribed = false;
    (app.onstart = app.onstart || []).push(() => {
        page = view = null;
        poll = app.poll(look);
        if (subscribed) return;
        subscribed = true;
        for (const key of ["plan", "dataset", "home", "checkpoint"]) app.store.on(key, start);
        app.store.on("run", (id) => { if (id && id !== known.chosen) { choose(id); if (poll) poll.wake(); } });
        // another browser or a command line may have started something meanwhile
        const again = () => { if (poll) poll.wake(); };
        window.addEventListener("focus", again);
        document.addEventListener("visibilitychange", again);
        if (typeof onUiTabChange === "function") onUiTabChange(again);
    });
})((window.loraTrainer = window.loraTrainer || {}));
