/* The tab's core: language, requests, building elements, the sections and when they are asked to draw, polling, and the few places where the host is touched.
 *
 * Every other file adds to window.loraTrainer and may be loaded before or after this one; nothing happens before the host calls onUiLoaded.
 * Addresses are relative, because the WebUI may live under --subpath. All ids and classes begin with lora_trainer / lora-trainer-. */
(function (app) {
    "use strict";

    const ROUTES = "lora-trainer/";
    const LANGUAGE_KEY = "lora-trainer-language";
    const STEP_KEY = "lora-trainer-step";
    const ORDER = ["images", "captions", "settings", "train", "try"];
    const SVG = "http://www.w3.org/2000/svg";

    // --- language --------------------------------------------------------------------------------------------------------------------

    let texts = {};

    /** The text in the visitor's language, with its {named} values put in. The first argument is always a literal: a test collects them. */
    app.t = function (text, values) {
        const known = texts[text] || text;
        return values
            ? known.replace(/\{(\w+)\}/g, (whole, name) =>
                  name in values ? String(values[name]) : whole,
              )
            : known;
    };

    /** One of two texts, by number; both take {count}. */
    app.count = function (count, one, many, values = {}) {
        return app.t(count === 1 ? one : many, { ...values, count: app.number(count) });
    };

    /** Sentences in a row, each with its full stop, as the language sets them. */
    app.sentences = function (...parts) {
        const wide = /^(zh|ja)/.test(locale());
        return parts
            .flat()
            .filter(Boolean)
            .map((part) =>
                /[.!?:\u3002\uff01\uff1f\uff1a\u2026]$/.test(part)
                    ? part
                    : part + (wide ? "\u3002" : "."),
            )
            .join(wide ? "" : " ");
    };

    /** "Name: words", as the language sets it. */
    app.colon = (name, words) => name + (/^(zh|ja)/.test(locale()) ? "\uff1a" : ": ") + words;

    app.number = (value, digits = 0) =>
        Number(value).toLocaleString(locale(), {
            minimumFractionDigits: 0,
            maximumFractionDigits: digits,
        });

    /** Seconds -> "1 h 5 min", "40 s". */
    app.duration = function (seconds) {
        const whole = Math.max(0, Math.round(seconds));
        if (whole < 90) return app.t("{seconds} s", { seconds: whole });
        if (whole < 5400) return app.t("{minutes} min", { minutes: Math.round(whole / 60) });
        return app.t("{hours} h {minutes} min", {
            hours: Math.floor(whole / 3600),
            minutes: Math.round((whole % 3600) / 60),
        });
    };

    /** Bytes -> "1.2 GB". */
    app.size = function (bytes) {
        const units = ["B", "kB", "MB", "GB", "TB"];
        let value = bytes,
            unit = 0;
        while (value >= 1000 && unit < units.length - 1) {
            value /= 1000;
            unit += 1;
        }
        return app.number(value, value < 10 && unit > 0 ? 1 : 0) + " " + units[unit];
    };

    app.when = (seconds) =>
        new Date(seconds * 1000).toLocaleString(locale(), {
            dateStyle: "medium",
            timeStyle: "short",
        });

    function locale() {
        return (app.store.get("language") || "en").replace("_", "-");
    }

    // --- requests --------------------------------------------------------------------------------------------------------------------

    /** What went wrong, as the server says it: a message and a hint for the visitor. */
    app.Problem = class Problem extends Error {
        constructor(
            message,
            {
                hint = "",
                status = 0,
                current = null,
                kind = "",
                problems = null,
                label = "",
                report = "",
            } = {},
        ) {
            super(message);
            Object.assign(this, { hint, status, current, kind, problems, label, report });
        }
    };

    app.address = (path, query) => {
        const parameters = new URLSearchParams(
            Object.entries(query || {}).filter(
                ([, value]) => value !== undefined && value !== null && value !== "",
            ),
        );
        const tail = parameters.toString();
        return ROUTES + path.replace(/^\//, "") + (tail ? "?" + tail : "");
    };

    function headers(more) {
        const language = app.store.get("language");
        return {
            "X-LoRA-Trainer": "1",
            ...(language ? { "X-LoRA-Trainer-Language": language } : {}),
            ...more,
        };
    }

    function problemOf(status, text) {
        try {
            const answer = JSON.parse(text);
            return new app.Problem(answer.error.message, {
                ...answer.error,
                status,
                current: answer.current,
            });
        } catch {
            return new app.Problem(
                app.t("The WebUI answered with an error ({status}).", { status }),
                { status, hint: app.t("Look at the WebUI's console.") },
            );
        }
    }

    async function ask(path, options, query) {
        let answer, text;
        try {
            answer = await fetch(app.address(path, query), {
                credentials: "same-origin",
                cache: "no-store",
                ...options,
            });
            // a WebUI may end in the middle of its answer, too
            text = await answer.text();
            heard(answer);
        } catch (trouble) {
            if (trouble.name !== "TimeoutError") listen();
            throw new app.Problem(app.t("The WebUI does not answer."), {
                hint: app.t("It may be starting again. Wait a moment, or look at its console."),
            });
        }
        if (!answer.ok) throw problemOf(answer.status, text);
        return (answer.headers.get("content-type") || "").includes("json")
            ? JSON.parse(text)
            : text;
    }

    // --- whether the WebUI is there --------------------------------------------------------------------------------------------------

    const LISTEN_MILLISECONDS = 2000;
    let session = null,
        isStale = false,
        listening = false;

    /** Every answer names the WebUI's app; another name is another start of it, whose page this one is not. */
    function heard(answer) {
        const now = answer.headers.get("x-lora-trainer-session");
        if (!now) return;
        session = session || now;
        isStale = isStale || now !== session;
        app.store.set("connection", isStale ? "stale" : "");
    }

    /** A question got no answer. If the next gets none either, the WebUI is gone; it is asked until it is back. */
    async function listen() {
        if (listening) return;
        listening = true;
        for (;;) {
            try {
                heard(
                    await fetch(app.address("pulse"), {
                        headers: headers(),
                        credentials: "same-origin",
                        cache: "no-store",
                    }),
                );
                break;
            } catch {
                app.store.set("connection", "lost");
            }
            await new Promise((resolve) => setTimeout(resolve, LISTEN_MILLISECONDS));
        }
        listening = false;
        // an app that has no routes of ours yet has no name
        if (app.store.get("connection") === "lost") setTimeout(listen, LISTEN_MILLISECONDS);
    }

    function showConnection() {
        if (!root()) return;
        const now = app.store.get("connection") || "";
        root().dataset.connection = now;
        for (const button of root().querySelectorAll(".lora-trainer-button")) mute(button);
        const before = root().querySelector(".lora-trainer-connection");
        if (before) before.remove();
        if (now === "lost")
            root().append(
                el(
                    "div",
                    {
                        class: "lora-trainer-connection lora-trainer-notice lora-trainer-notice-error",
                        role: "alert",
                    },
                    el(
                        "p",
                        {},
                        app.t(
                            "The WebUI does not answer. A training goes on by itself: it needs neither the WebUI nor this page.",
                        ),
                    ),
                    el(
                        "p",
                        { class: "lora-trainer-hint" },
                        app.t("Trying again until it is back. What you have typed is kept."),
                    ),
                ),
            );
        if (now === "stale")
            root().append(
                el(
                    "div",
                    {
                        class: "lora-trainer-connection lora-trainer-notice lora-trainer-notice-warning",
                        role: "alert",
                    },
                    el(
                        "p",
                        {},
                        app.t(
                            "The WebUI was started again. Reload this page: its other tabs belong to the WebUI before, and do not work any more.",
                        ),
                    ),
                    el(
                        "div",
                        { class: "lora-trainer-row" },
                        app.widgets.button({
                            label: app.t("Reload the page"),
                            local: true,
                            onclick: () => location.reload(),
                        }),
                    ),
                ),
            );
    }

    /** Without the WebUI only those buttons work that need nothing of it. */
    function mute(button) {
        if (app.store.get("connection") === "lost" && !("local" in button.dataset))
            button.setAttribute("aria-disabled", "true");
        else button.removeAttribute("aria-disabled");
    }

    app.api = {
        get: (path, query) => ask(path, { headers: headers() }, query),
        /** `seconds`: how long an answer may take; `keepalive`: the request outlives the page. */
        post: (path, body, { seconds = 0, keepalive = false } = {}) =>
            ask(path, {
                method: "POST",
                headers: headers({ "Content-Type": "application/json" }),
                body: JSON.stringify(body || {}),
                keepalive,
                signal: seconds ? AbortSignal.timeout(seconds * 1000) : null,
            }),
        /** One file as the raw body; onProgress hears a share from 0 to 1. The promise has .cancel(). */
        upload(path, file, onProgress, query) {
            const request = new XMLHttpRequest();
            const promise = new Promise((resolve, reject) => {
                request.open(
                    "POST",
                    app.address(path, { name: file.name, size: file.size, ...query }),
                );
                for (const [name, value] of Object.entries(
                    headers({ "Content-Type": "application/octet-stream" }),
                ))
                    request.setRequestHeader(name, value);
                request.upload.onprogress = (event) =>
                    event.lengthComputable && onProgress && onProgress(event.loaded / event.total);
                request.onload = () =>
                    request.status < 300
                        ? resolve(JSON.parse(request.responseText))
                        : reject(problemOf(request.status, request.responseText));
                request.onerror = () =>
                    reject(
                        new app.Problem(app.t("The upload was interrupted."), {
                            hint: app.t("Try again; what has arrived stays."),
                        }),
                    );
                request.onabort = () =>
                    reject(
                        new app.Problem(app.t("The upload was cancelled."), { kind: "Cancelled" }),
                    );
                request.send(file);
            });
            promise.cancel = () => request.abort();
            return promise;
        },
    };

    // --- elements --------------------------------------------------------------------------------------------------------------------

    /** An element: attributes (class, on..., aria-..., dataset, style as objects), then children: elements, texts, or nothing. */
    app.el = function (tag, attributes, ...children) {
        return build(document.createElement(tag), attributes, children);
    };

    app.svg = function (tag, attributes, ...children) {
        return build(document.createElementNS(SVG, tag), attributes, children);
    };

    function build(element, attributes, children) {
        for (const [name, value] of Object.entries(attributes || {})) {
            if (value === undefined || value === null || value === false) continue;
            if (name.startsWith("on")) element.addEventListener(name.slice(2), value);
            else if (name === "dataset" || name === "style") Object.assign(element[name], value);
            else if (name === "value" || name === "checked" || name === "indeterminate")
                element[name] = value;
            else element.setAttribute(name, value === true ? "" : value);
        }
        app.fill(element, ...children);
        return element;
    }

    /** Replace what is in an element. */
    app.fill = function (element, ...children) {
        element.replaceChildren(
            ...children
                .flat(Infinity)
                .filter((child) => child !== null && child !== undefined && child !== false),
        );
        return element;
    };

    let serial = 0;
    app.id = (name) => "lora_trainer_" + name + "_" + (serial += 1);

    const el = app.el;

    app.widgets = {
        /** A button. `onclick` may return a promise: until it settles the button is busy and cannot be pressed again; a Problem is shown as a toast. */
        /** `local`: it needs nothing of the server. */
        button({
            label,
            kind = "secondary",
            onclick,
            disabled = false,
            title = "",
            describedby = "",
            local = false,
        }) {
            const button = el(
                "button",
                {
                    type: "button",
                    "data-local": local || null,
                    class: "lora-trainer-button lora-trainer-" + kind,
                    disabled,
                    title: title || null,
                    "aria-describedby": describedby || null,
                },
                label,
            );
            button.addEventListener("click", async (event) => {
                if (
                    button.getAttribute("aria-busy") === "true" ||
                    button.getAttribute("aria-disabled") === "true"
                )
                    return;
                const work = onclick && onclick(event);
                if (!(work instanceof Promise)) return;
                button.setAttribute("aria-busy", "true");
                try {
                    await work;
                } catch (problem) {
                    app.widgets.toastProblem(problem);
                } finally {
                    button.removeAttribute("aria-busy");
                }
            });
            mute(button);
            return button;
        },

        /** Make a button the primary one of its screen, or one of the others. */
        makePrimary(button, is) {
            button.classList.toggle("lora-trainer-primary", is);
            button.classList.toggle("lora-trainer-secondary", !is);
        },

        /** The bar at the window's lower edge with what a section's next step is: {element, say(text), fill(...buttons)}. One of them is the screen's primary button. */
        actions() {
            const words = el("p", { class: "lora-trainer-actions-words", role: "status" });
            const buttons = el("div", { class: "lora-trainer-row lora-trainer-actions-buttons" });
            const element = el(
                "div",
                { class: "lora-trainer-actions", role: "group", "aria-label": app.t("Next step") },
                el("div", { class: "lora-trainer-actions-inner" }, words, buttons),
            );
            // fixed, because the hosts' own container cuts what sticks: the page keeps room for it below
            new ResizeObserver(() => {
                if (element.offsetHeight)
                    root().style.setProperty("--lora-trainer-actions", element.offsetHeight + "px");
            }).observe(element);
            return {
                element,
                say(text) {
                    if (words.textContent !== text) words.textContent = words.title = text;
                },
                fill(...wanted) {
                    const now = wanted.flat().filter(Boolean);
                    if (
                        now.length === buttons.children.length &&
                        now.every((button, at) => buttons.children[at] === button)
                    )
                        return;
                    const focused = buttons.contains(document.activeElement)
                        ? document.activeElement
                        : null;
                    app.fill(buttons, now);
                    if (focused && focused.isConnected) focused.focus();
                },
            };
        },

        /** A sentence in a box: severity error, warning, info or done. */
        notice(severity, message, hint, ...actions) {
            return el(
                "div",
                {
                    class: "lora-trainer-notice lora-trainer-notice-" + severity,
                    role: severity === "error" ? "alert" : "status",
                },
                el("p", {}, message),
                hint ? el("p", { class: "lora-trainer-hint" }, hint) : null,
                actions.length ? el("div", { class: "lora-trainer-row" }, actions) : null,
            );
        },

        problem: (problem, ...actions) =>
            app.widgets.notice("error", problem.message, problem.hint, ...actions),

        /** A short message at the edge that goes away by itself; `action` is {label, onclick}. */
        toast(message, { severity = "info", hint = "", action = null, seconds = 6 } = {}) {
            let shelf = root().querySelector(".lora-trainer-toasts");
            if (!shelf)
                root().append(
                    (shelf = el("div", {
                        class: "lora-trainer-toasts",
                        role: "status",
                        "aria-live": "polite",
                    })),
                );
            const leave = () => toast.remove();
            const toast = el(
                "div",
                { class: "lora-trainer-toast lora-trainer-notice-" + severity },
                el(
                    "div",
                    {},
                    el("p", {}, message),
                    hint ? el("p", { class: "lora-trainer-hint" }, hint) : null,
                ),
                action
                    ? app.widgets.button({
                          label: action.label,
                          onclick: () => {
                              leave();
                              return action.onclick();
                          },
                      })
                    : null,
                el(
                    "button",
                    {
                        type: "button",
                        class: "lora-trainer-close",
                        "aria-label": app.t("Close"),
                        onclick: leave,
                    },
                    "\u00d7",
                ),
            );
            shelf.append(toast);
            let timer = setTimeout(leave, seconds * 1000);
            toast.addEventListener("pointerenter", () => clearTimeout(timer));
            toast.addEventListener("focusin", () => clearTimeout(timer));
            toast.addEventListener("pointerleave", () => {
                timer = setTimeout(leave, 2000);
            });
            return toast;
        },

        toastProblem(problem) {
            if (problem && problem.kind === "Cancelled") return;
            if (!(problem instanceof app.Problem)) console.error(problem);
            app.widgets.toast(problem.message || String(problem), {
                severity: "error",
                hint: problem.hint || "",
                seconds: 12,
            });
        },

        /** A modal dialog: Escape and the close button leave it; focus stays in it and goes back. actions: [{label, kind, onclick}]; onclick may return a promise or false to stay.
         * `wide`: as wide as there is room for; `fit`: as wide as what is in it. */
        // its actions stand in no <footer>: the hosts hide all of them, to be rid of gradio's
        dialog({ title, body, actions = [], wide = false, fit = false, onclose = null }) {
            const heading = app.id("dialog");
            const dialog = el("dialog", {
                class:
                    "lora-trainer-dialog" +
                    (wide ? " lora-trainer-dialog-wide" : "") +
                    (fit ? " lora-trainer-dialog-fit" : ""),
                "aria-labelledby": heading,
            });
            const close = () => dialog.close();
            // a toast would lie behind it
            const trouble = el("div");
            const act = async (action) => {
                app.fill(trouble);
                try {
                    if ((await (action.onclick && action.onclick())) !== false) close();
                } catch (problem) {
                    if (!(problem instanceof app.Problem)) throw problem;
                    app.fill(trouble, app.widgets.problem(problem));
                    trouble.scrollIntoView({ block: "nearest" });
                }
            };
            app.fill(
                dialog,
                el(
                    "header",
                    {},
                    el("h3", { id: heading }, title),
                    el(
                        "button",
                        {
                            type: "button",
                            class: "lora-trainer-close",
                            "aria-label": app.t("Close"),
                            onclick: close,
                        },
                        "\u00d7",
                    ),
                ),
                el("div", { class: "lora-trainer-dialog-body" }, body, trouble),
                actions.length
                    ? el(
                          "div",
                          { class: "lora-trainer-row lora-trainer-dialog-actions" },
                          actions.map((action) =>
                              app.widgets.button({
                                  local: !action.onclick,
                                  ...action,
                                  onclick: () => act(action),
                              }),
                          ),
                      )
                    : null,
            );
            dialog.addEventListener("close", () => {
                dialog.remove();
                if (onclose) onclose();
            });
            // a click beside it closes it; text that is selected from a box in it to beyond its edge does not
            let beside = false;
            dialog.addEventListener("pointerdown", (event) => {
                beside = event.target === dialog;
            });
            dialog.addEventListener(
                "click",
                (event) => beside && event.target === dialog && close(),
            );
            // the host's keyboard shortcuts listen on the document
            dialog.addEventListener("keydown", (event) => event.stopPropagation());
            root().append(dialog);
            dialog.showModal();
            return { element: dialog, close };
        },

        /** Ask before something is done; resolves to true or false. */
        confirm({ title, message, label, kind = "primary" }) {
            return new Promise((resolve) => {
                let answer = false;
                app.widgets.dialog({
                    title,
                    body: el("p", {}, message),
                    onclose: () => resolve(answer),
                    actions: [
                        { label: app.t("Cancel") },
                        {
                            label,
                            kind,
                            onclick: () => {
                                answer = true;
                            },
                        },
                    ],
                });
            });
        },

        /** A labelled input with its help, its unit and room for a problem. `input` is the element that holds the value. */
        labelled(label, input, { help = "", problem = null } = {}) {
            if (!input.id) input.id = app.id("input");
            const helpId = input.id + "_help";
            if (help) input.setAttribute("aria-describedby", helpId);
            return el(
                "div",
                { class: "lora-trainer-field" },
                el("label", { for: input.id }, label),
                input,
                help ? el("p", { class: "lora-trainer-help", id: helpId }, help) : null,
                problem,
            );
        },

        text({
            value = "",
            placeholder = "",
            oninput = null,
            onchange = null,
            rows = 0,
            maxlength = null,
            label = null,
            id = null,
        }) {
            const attributes = {
                class: "lora-trainer-input",
                placeholder,
                maxlength,
                "aria-label": label,
                id,
                spellcheck: rows ? null : "false",
                oninput: oninput && ((event) => oninput(event.target.value)),
                onchange: onchange && ((event) => onchange(event.target.value)),
            };
            const input = rows
                ? el("textarea", { ...attributes, rows })
                : el("input", { type: "text", ...attributes });
            input.value = value;
            // Ctrl+Enter and others belong to the host's generation
            input.addEventListener("keydown", (event) => event.stopPropagation());
            return input;
        },

        select({ value = "", options, onchange = null, label = null, id = null }) {
            const select = el(
                "select",
                {
                    class: "lora-trainer-input",
                    "aria-label": label,
                    id,
                    onchange: onchange && ((event) => onchange(event.target.value)),
                },
                options.map((option) =>
                    el(
                        "option",
                        { value: option.value, disabled: option.disabled || null },
                        option.label,
                    ),
                ),
            );
            select.value = value;
            return select;
        },

        /** A slider with its number beside it; `mark` is {value, label} of a recommended value. Has .value, .set(value) (silent). */
        slider({ label, value, minimum, maximum, step, mark = null, onchange }) {
            const name = app.id("slider");
            const range = el("input", {
                type: "range",
                id: name,
                min: minimum,
                max: maximum,
                step,
                class: "lora-trainer-range",
                "aria-label": label,
                list: mark ? name + "_marks" : null,
            });
            const number = el("input", {
                type: "number",
                min: minimum,
                max: maximum,
                step,
                class: "lora-trainer-input lora-trainer-number",
                "aria-label": label,
            });
            // browsers choose a dark rail for some accent colours, also on a light page: the rail is ours
            const paint = () =>
                range.style.setProperty(
                    "--lora-trainer-share",
                    (Number(range.value) - minimum) / (maximum - minimum),
                );
            const show = (shown) => {
                range.value = shown;
                number.value = shown;
                paint();
            };
            const hear = (event) => {
                if (event.target.value === "" || Number.isNaN(Number(event.target.value))) return;
                const chosen = Number(event.target.value);
                if (event.target === range) number.value = chosen;
                else range.value = chosen;
                paint();
                onchange(chosen);
            };
            range.addEventListener("input", hear);
            number.addEventListener("input", hear);
            number.addEventListener("keydown", (event) => event.stopPropagation());
            show(value);
            const share = mark && ((mark.value - minimum) / (maximum - minimum)) * 100;
            const element = el(
                "div",
                { class: "lora-trainer-slider" },
                el(
                    "div",
                    { class: "lora-trainer-slider-track" },
                    range,
                    mark && share >= 0 && share <= 100
                        ? el("button", {
                              type: "button",
                              class: "lora-trainer-mark",
                              style: { left: "calc(16px + (100% - 32px) * " + share / 100 + ")" },
                              title: mark.label,
                              "aria-label": mark.label,
                              onclick: () => {
                                  show(mark.value);
                                  onchange(mark.value);
                              },
                          })
                        : null,
                    mark
                        ? el(
                              "datalist",
                              { id: name + "_marks" },
                              el("option", { value: mark.value }),
                          )
                        : null,
                ),
                number,
            );
            return Object.defineProperty({ element, range, number, set: show }, "value", {
                get: () => Number(number.value),
            });
        },

        /** A progress bar; .set(done, total, text): without a total it only says that something goes on. */
        progress(label) {
            const bar = el("div", { class: "lora-trainer-bar-fill" });
            const words = el("span", { class: "lora-trainer-bar-text" });
            const element = el(
                "div",
                {
                    class: "lora-trainer-bar",
                    role: "progressbar",
                    "aria-label": label,
                    "aria-valuemin": "0",
                    "aria-valuemax": "100",
                },
                bar,
                words,
            );
            return {
                element,
                set(done, total, text = "") {
                    const share = total ? Math.min(100, (done / total) * 100) : 0;
                    element.classList.toggle("lora-trainer-bar-unknown", !total);
                    if (total) element.setAttribute("aria-valuenow", share.toFixed(0));
                    else element.removeAttribute("aria-valuenow");
                    element.setAttribute("aria-valuetext", text);
                    bar.style.width = share + "%";
                    words.textContent = text;
                },
            };
        },
    };

    /** Copy a text; the WebUI is often reached over plain http, where the clipboard needs the old way. */
    app.copy = async function (text) {
        try {
            await navigator.clipboard.writeText(text);
        } catch {
            const area = el("textarea", { class: "lora-trainer-offscreen" });
            area.value = text;
            const home = document.querySelector("dialog[open]") || root();
            home.append(area);
            area.select();
            document.execCommand("copy");
            area.remove();
        }
        app.widgets.toast(app.t("Copied."), { seconds: 2 });
    };

    app.random = () =>
        Array.from(crypto.getRandomValues(new Uint32Array(4)), (part) =>
            part.toString(16).padStart(8, "0"),
        ).join("");

    // --- what the sections share -----------------------------------------------------------------------------------------------------

    const values = new Map(),
        listeners = new Map();

    app.store = {
        get: (key) => values.get(key),
        set(key, value) {
            if (values.get(key) === value) return;
            values.set(key, value);
            for (const listener of [...(listeners.get(key) || [])]) listener(value);
        },
        /** Hear of every change of a key; returns how to stop. */
        on(key, listener) {
            if (!listeners.has(key)) listeners.set(key, new Set());
            listeners.get(key).add(listener);
            return () => listeners.get(key).delete(listener);
        },
    };

    /** What this browser remembers: for good, or with `session` until its window is closed. A private window keeps nothing, and another page's word is none. */
    app.store.on("connection", showConnection);

    app.kept = {
        get(key, { session = false } = {}) {
            try {
                return JSON.parse(
                    (session ? window.sessionStorage : window.localStorage).getItem(key),
                );
            } catch {
                return null;
            }
        },
        set(key, value, { session = false } = {}) {
            try {
                (session ? window.sessionStorage : window.localStorage).setItem(
                    key,
                    JSON.stringify(value),
                );
            } catch {
                /* forgotten, then */
            }
        },
    };

    // --- sections --------------------------------------------------------------------------------------------------------------------

    const sections = new Map();
    let current = null;

    /** {id, title(), draw(container), shown(), hidden()}: drawn when first shown. Sections whose id is not among the five steps may be opened with app.open only. */
    app.section = (section) => {
        sections.set(section.id, section);
    };

    /** A few words under a step's name: what is there already. */
    app.summary = function (id, text, state) {
        const note =
            root() && root().querySelector("#lora_trainer_step_" + id + " .lora-trainer-step-note");
        if (!note) return;
        note.textContent = text || invitation(id);
        note.parentElement.dataset.state = state || "";
    };

    /** What a step is for, while there is nothing to tell of it. */
    function invitation(id) {
        switch (id) {
            case "images":
                return app.t("Add your pictures");
            case "captions":
                return app.t("Say what they show");
            case "train":
                return app.t("Start and watch");
            case "try":
                return app.t("With it and without it");
            default:
                return "";
        }
    }

    app.open = function (id) {
        const section = sections.get(id);
        if (!section || id === current) return;
        const before = sections.get(current);
        if (before && before.hidden) before.hidden();
        current = id;
        app.kept.set(STEP_KEY, id, { session: true });
        for (const step of root().querySelectorAll("[role=tab]")) {
            const chosen = step.id === "lora_trainer_step_" + id;
            step.setAttribute("aria-selected", chosen);
            step.tabIndex = chosen ? 0 : -1;
        }
        for (const panel of root().querySelectorAll("[role=tabpanel]"))
            panel.hidden = panel.id !== "lora_trainer_section_" + id;
        drawn(section);
        if (section.shown) section.shown();
        app.store.set("section", id);
        settle();
    };

    app.current = () => current;

    function drawn(section) {
        if (section.container) return;
        section.container = root().querySelector("#lora_trainer_section_" + section.id);
        try {
            section.draw(section.container);
        } catch (problem) {
            console.error(problem);
            app.fill(
                section.container,
                app.widgets.notice(
                    "error",
                    app.t("This part of the tab could not be drawn."),
                    String(problem),
                ),
            );
        }
    }

    function stepper(steps) {
        const move = (event) => {
            const way = { ArrowRight: 1, ArrowLeft: -1, Home: -steps.length, End: steps.length }[
                event.key
            ];
            if (!way) return;
            event.preventDefault();
            const at = steps.findIndex((section) => section.id === current);
            const next = steps[Math.min(steps.length - 1, Math.max(0, at + way))];
            app.open(next.id);
            root()
                .querySelector("#lora_trainer_step_" + next.id)
                .focus();
        };
        return el(
            "div",
            {
                class: "lora-trainer-steps",
                role: "tablist",
                "aria-label": app.t("From the images to the LoRA"),
                onkeydown: move,
            },
            steps.map((section, index) =>
                el(
                    "button",
                    {
                        type: "button",
                        role: "tab",
                        class: "lora-trainer-step",
                        id: "lora_trainer_step_" + section.id,
                        "aria-controls": "lora_trainer_section_" + section.id,
                        "aria-selected": "false",
                        tabindex: "-1",
                        onclick: () => app.open(section.id),
                    },
                    el(
                        "span",
                        { class: "lora-trainer-step-number", "aria-hidden": "true" },
                        String(index + 1),
                    ),
                    el("span", { class: "lora-trainer-step-title" }, section.title()),
                    el("span", { class: "lora-trainer-step-note" }, invitation(section.id)),
                ),
            ),
        );
    }

    // --- polling ---------------------------------------------------------------------------------------------------------------------

    const polls = new Set();
    let onScreen = false;

    /** Whether somebody can see the tab now. */
    app.visible = () => onScreen && document.visibilityState === "visible";

    /** Call fn now and again: it returns (or resolves to) the seconds until the next call, or null to rest until .wake(). It rests while the tab cannot be seen. */
    app.poll = function (fn) {
        const poll = { timer: 0, busy: false, stopped: false, resting: false, due: false };
        const run = async () => {
            clearTimeout(poll.timer);
            if (poll.stopped || poll.busy) {
                poll.due = poll.busy;
                return;
            }
            if (!app.visible()) {
                poll.due = true;
                return;
            }
            poll.busy = true;
            poll.due = false;
            let seconds = null;
            try {
                seconds = await fn();
            } catch (problem) {
                if (!(problem instanceof app.Problem)) console.error(problem);
                seconds = 3;
            }
            poll.busy = false;
            if (poll.stopped) return;
            if (poll.due) run();
            else if (seconds !== null && seconds !== undefined)
                poll.timer = setTimeout(run, seconds * 1000);
        };
        poll.run = run;
        polls.add(poll);
        run();
        return {
            wake: run,
            stop() {
                poll.stopped = true;
                clearTimeout(poll.timer);
                polls.delete(poll);
            },
        };
    };

    function lookAround() {
        for (const poll of polls) if (poll.due && app.visible()) poll.run();
    }

    function watchVisibility() {
        document.addEventListener("visibilitychange", lookAround);
        new IntersectionObserver((entries) => {
            onScreen = entries[entries.length - 1].isIntersecting;
            lookAround();
        }).observe(root());
    }

    // --- the host --------------------------------------------------------------------------------------------------------------------

    const page = () => (typeof gradioApp === "function" ? gradioApp() : document);

    function root() {
        return page().querySelector("#lora_trainer_root");
    }
    app.root = root;

    app.host = {
        page,
        /** The prompt boxes of "txt2img" or "img2img". */
        prompts: (tab) => ({
            positive: page().querySelector("#" + tab + "_prompt textarea"),
            negative: page().querySelector("#" + tab + "_neg_prompt textarea"),
        }),
        /** Write into one of the host's text boxes so that gradio takes it up. */
        write(box, text) {
            box.value = text;
            if (typeof updateInput === "function") updateInput(box);
            else box.dispatchEvent(new Event("input", { bubbles: true }));
        },
        /** Put a prompt (and, where given, a negative one and a seed) into "txt2img" or "img2img" and show that tab. */
        send(tab, { prompt, negative, seed }) {
            if (app.store.get("connection") === "stale") {
                app.widgets.toast(app.t("Reload this page first: the WebUI was started again."), {
                    severity: "warning",
                });
                return;
            }
            const boxes = app.host.prompts(tab);
            app.host.write(boxes.positive, prompt);
            if (negative !== undefined && boxes.negative) app.host.write(boxes.negative, negative);
            const seedBox = page().querySelector("#" + tab + "_seed input");
            if (seed !== undefined && seedBox) app.host.write(seedBox, String(seed));
            const show = window["switch_to_" + tab];
            if (typeof show === "function") show();
        },
        /** Pages of LoRA cards that are open keep their cards until their own button is pressed; others are drawn when they are opened. */
        redrawCards() {
            for (const tab of ["txt2img", "img2img"]) {
                const button = page().querySelector("#" + tab + "_lora_extra_refresh_internal");
                if (button && page().querySelector("#" + tab + "_lora_cards"))
                    button.dispatchEvent(new Event("click"));
            }
        },
    };

    // --- start -----------------------------------------------------------------------------------------------------------------------

    /** Read the page's facts again; the sections hear of them through the store's "home". */
    app.refresh = async function () {
        const home = await app.api.get("home");
        app.store.set("language", home.language);
        app.store.set("home", home);
        return home;
    };

    async function learn(language) {
        texts = language && language !== "en" ? await app.api.get("texts/" + language) : {};
        root().lang = language.replace("_", "-");
    }

    function header(home) {
        const language = app.widgets.select({
            value: home.language,
            label: app.t("Language"),
            options: home.languages.map((known) => ({ value: known.code, label: known.name })),
            onchange: (code) => {
                app.kept.set(LANGUAGE_KEY, code);
                app.store.set("language", code);
                app.start();
            },
        });
        return el(
            "div",
            { class: "lora-trainer-header" },
            el(
                "p",
                { class: "lora-trainer-help" },
                home.host.cpu
                    ? app.t(
                          "Trains on the processor, since the WebUI uses no graphics card: this takes long.",
                      )
                    : home.host.memory
                      ? app.t("Trains on {device} with {size} of memory", {
                            device: home.host.device,
                            size: app.size(home.host.memory.total),
                        })
                      : app.t("Trains on {device}", { device: home.host.device }),
            ),
            home.languages.length > 1 ? language : null,
        );
    }

    /** The extension is broken: what tab.py draws where it finds that out before the page is made. */
    function cannotStart({ message, hint, label, report }) {
        return el(
            "div",
            { id: "lora_trainer_trouble", role: "alert" },
            el("h2", {}, message),
            el("p", {}, hint),
            el("label", { for: "lora_trainer_report" }, label),
            el(
                "textarea",
                { id: "lora_trainer_report", readonly: true, rows: "12", style: { width: "100%" } },
                report,
            ),
        );
    }

    /** A WebUI that comes back after "Reload UI" shows its page before it has the routes of extensions. */
    const EARLY = { milliseconds: 1000, most: 60 };
    let early = 0,
        startAgain = 0;

    app.start = async function () {
        const place = root();
        if (!place) return;
        clearTimeout(startAgain);
        for (const poll of [...polls]) {
            poll.stopped = true;
            clearTimeout(poll.timer);
            polls.delete(poll);
        }
        if (app.store.get("language") === undefined)
            app.store.set("language", app.kept.get(LANGUAGE_KEY) || "");
        let home;
        try {
            home = await app.refresh();
            await learn(home.language);
        } catch (problem) {
            app.fill(
                place,
                problem.report
                    ? cannotStart(problem)
                    : app.widgets.problem(
                          problem,
                          app.widgets.button({
                              label: app.t("Try again"),
                              kind: "primary",
                              local: true,
                              onclick: app.start,
                          }),
                      ),
            );
            if ([0, 404].includes(problem.status) && (early += 1) <= EARLY.most)
                startAgain = setTimeout(app.start, EARLY.milliseconds);
            return;
        }
        early = 0;
        const steps = ORDER.map((id) => sections.get(id)).filter(Boolean);
        const before = current || app.kept.get(STEP_KEY, { session: true });
        const old = sections.get(current);
        if (old && old.hidden) old.hidden();
        current = null;
        for (const section of sections.values()) section.container = null;
        app.fill(
            place,
            header(home),
            stepper(steps),
            steps.map((section) =>
                el("section", {
                    role: "tabpanel",
                    class: "lora-trainer-section",
                    id: "lora_trainer_section_" + section.id,
                    "aria-labelledby": "lora_trainer_step_" + section.id,
                    tabindex: "-1",
                    hidden: true,
                }),
            ),
        );
        for (const hook of app.onstart) hook(home);
        showConnection();
        app.open(steps.some((section) => section.id === before) ? before : steps[0].id);
    };

    /** Called after every start, with the page's facts, before the first section is shown: for what is not inside a section. */
    app.onstart = app.onstart || [];

    function settle() {
        lookAround();
    }

    function boot() {
        if (!root() || root().dataset.started) return;
        root().dataset.started = "1";
        watchVisibility();
        app.start();
    }

    if (typeof onUiLoaded === "function") onUiLoaded(boot);
    else document.addEventListener("DOMContentLoaded", boot);
})((window.loraTrainer = window.loraTrainer || {}));
