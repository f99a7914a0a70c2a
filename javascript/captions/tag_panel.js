/*
 * The table of tags with their counts, in a column that stays open. A click filters for images with
 * a tag, or without it; several tags are combined. A button removes a tag from all captions that
 * were counted. Of captions that are sentences, words are counted.
 */
import { api, expected } from "../common/api.js";
import { el, fill, find, findAll } from "../common/elements.js";
import { formatNumber, plural, t } from "../common/language.js";
import { kept } from "../common/store.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "../images/datasets.js";
import { bench, listen } from "./bench.js";
import * as bulk from "./bulk.js";
import * as changes from "./changes.js";
import * as controls from "./controls.js";
import * as filter from "./filter.js";

/** @import { TagCountView, TagTableView } from "../common/answers" */

const OPEN_KEY = "lora-trainer-tags-open";

const MOST = 300;

/**
 * What is counted. `kind`: "tags" or "words"; "" chooses by the captions.
 *
 * @typedef {{kind: string, sort: string, scope: string}} Counting
 */

/**
 * `toggler`: the button in the toolbar.
 *
 * @type {{panel: () => HTMLElement, toggle: () => void, toggler: HTMLElement | null}}
 */
export const tagPanel = { panel, toggle: () => {}, toggler: null };

/** The controls for what is counted, and the order. `load()` is called after a change. */
const choices = (/** @type {Counting} */ counting, /** @type {() => void} */ load) => ({
    kind: widgets.select({
        label: t("Count"),
        value: "tags",
        options: [
            { value: "tags", label: t("Tags (comma-separated)") },
            { value: "words", label: t("Single words") },
        ],
        onchange: (value) => {
            counting.kind = value;
            load();
        },
    }),
    sort: widgets.select({
        label: t("Order"),
        value: "count",
        options: [
            { value: "count", label: t("Most frequent first") },
            { value: "name", label: t("By name") },
        ],
        onchange: (value) => {
            counting.sort = value;
            load();
        },
    }),
    scope: widgets.select({
        label: t("Images to count"),
        value: "all",
        options: [
            { value: "all", label: t("In all images") },
            { value: "matching", label: t("In images that match the filter") },
        ],
        onchange: (value) => {
            counting.scope = value;
            load();
        },
    }),
});

/**
 * @param {HTMLElement} search
 * @param {HTMLElement[]} boxes
 * @param {HTMLElement[]} rest
 */
const frame = (search, boxes, rest) =>
    el(
        "section.lora-trainer-card.lora-trainer-bench-tag-panel",
        { hidden: true, "aria-label": t("Tags") },
        search,
        el(
            "details",
            el("summary.lora-trainer-help", t("Sorting and counting")),
            el("div.lora-trainer-bench-tag-head", boxes),
        ),
        rest,
    );

/**
 * @param {TagCountView} tag
 * @param {number} most
 * @param {boolean} isTag
 * @param {Counting} counting
 */
function line({ tag, count }, most, isTag, counting) {
    const { query } = bench.page.pages;
    const has = (/** @type {"tag" | "without"} */ name) =>
        filter.tags(name).some((one) => one.toLowerCase() === tag.toLowerCase());
    const on = isTag ? has("tag") : query.text === tag;
    const show = () => (isTag ? filter.toggleTag("tag", tag) : filter.ask({ text: on ? "" : tag }));
    const away = isTag ? has("without") : query.lacks === tag;
    const hide = () =>
        isTag ? filter.toggleTag("without", tag) : filter.ask({ lacks: away ? "" : tag });
    const removing =
        counting.scope === "matching"
            ? t("Remove {tag} from the captions that match the filter", { tag })
            : t("Remove {tag} from all captions", { tag });
    return el(
        "li",
        { dataset: { tag } },
        el(
            "button.lora-trainer-bench-tag",
            {
                type: "button",
                "aria-pressed": String(on),
                title: tag,
                "aria-label": t("{tag}: in {count} captions. Show them", {
                    tag,
                    count: formatNumber(count),
                }),
                onclick: () => {
                    show().catch(widgets.toastProblem);
                },
            },
            el("span.lora-trainer-bench-tag-bar", { style: { width: (count / most) * 100 + "%" } }),
            el("span.lora-trainer-bench-tag-name", tag),
            el("span.lora-trainer-bench-tag-count", formatNumber(count)),
        ),
        sign("\u2212", t("Show the captions without {tag}", { tag }), hide, {
            "aria-pressed": String(away),
        }),
        sign("\u270e", t("Rename {tag}", { tag }), () => rename(tag, isTag)),
        sign("\u00d7", removing, () => remove(tag, isTag, counting)),
    );
}

/**
 * A button with a symbol, because the column is narrow.
 *
 * @param {string} mark
 * @param {string} label
 * @param {() => unknown} onclick
 * @param {Record<string, unknown>} [more] attributes
 */
const sign = (mark, label, onclick, more) =>
    controls.link(mark, onclick, {
        class: "lora-trainer-bench-sign",
        "aria-label": label,
        title: label,
        ...more,
    });

/** The captions that were counted. */
const counted = (/** @type {Counting} */ counting) => ({
    where: counting.scope === "matching" ? filter.where() : {},
});

/** @type {(tag: string, isTag: boolean, counting: Counting) => Promise<void>} */
const remove = (tag, isTag, counting) =>
    changes.change(
        counted(counting),
        isTag
            ? { do: "remove", tags: [tag] }
            : { do: "replace", find: tag, replace: "", regex: false, case: false, whole: true },
    );

const rename = (/** @type {string} */ tag, /** @type {boolean} */ isTag) =>
    isTag
        ? bulk.open("replace-tag", { tag, replace: tag })
        : bulk.open("replace", { find: tag, replace: tag });

/**
 * Replace the lines of the list; keyboard focus and scroll position are preserved.
 */
function refill(/** @type {HTMLElement} */ list, /** @type {HTMLElement[]} */ lines) {
    const focused = find(list, ":focus"),
        before = focused?.closest("li");
    const place = before && focused ? findAll(before, "*").indexOf(focused) : 0;
    const scrolled = list.scrollTop;
    fill(list, lines);
    list.scrollTop = scrolled;
    const again = before && lines.find((line) => line.dataset.tag === before.dataset.tag);
    if (again) findAll(again, "*")[place].focus();
}

const queryOf = (/** @type {Counting} */ counting) => ({
    ...counted(counting).where,
    kind: counting.kind || "tags",
    sort: counting.sort,
    limit: MOST,
});

const countText = (/** @type {TagTableView} */ { kind, distinct }) =>
    kind === "words"
        ? plural(distinct, "{count} word", "{count} different words")
        : plural(distinct, "{count} tag", "{count} different tags");

function panel() {
    const counting = { kind: "", sort: "count", scope: "all" };
    const list = el("ul.lora-trainer-bench-tags");
    const words = el("p.lora-trainer-help", { role: "status" });
    /** @type {TagTableView | null} */
    let table = null;
    let wanted = "",
        serial = 0;
    const { kind, sort, scope } = choices(counting, () => load());
    const search = widgets.text({
        label: t("Find a tag"),
        placeholder: t("Find a tag"),
        oninput: (value) => {
            wanted = value.trim().toLowerCase();
            draw();
        },
    });
    const element = frame(search, [kind, sort, scope], [words, list]);

    async function load() {
        const mine = (serial += 1);
        const query = queryOf(counting);
        try {
            let found = await api.get(datasets.path("tags"), query);
            if (!counting.kind && found.mostly === "sentences" && mine === serial)
                found = await api.get(datasets.path("tags"), { ...query, kind: "words" });
            if (mine !== serial) return;
            table = found;
            kind.value = found.kind;
            draw();
        } catch (caught) {
            if (mine === serial) fill(words, expected(caught).message);
        }
    }

    function draw() {
        if (!table) return;
        const isTag = table.kind === "tags";
        const shown = table.tags.filter(({ tag }) => tag.toLowerCase().includes(wanted));
        const most = Math.max(1, ...table.tags.map(({ count }) => count));
        words.textContent = countText(table);
        refill(
            list,
            shown.map((one) => line(one, most, isTag, counting)),
        );
    }

    function show(/** @type {boolean} */ open) {
        element.hidden = !open;
        bench.page.panel.dataset.tags = open ? "beside" : "";
        tagPanel.toggler?.setAttribute("aria-expanded", String(open));
        if (open) load();
    }

    tagPanel.toggle = () => {
        show(Boolean(element.hidden));
        kept.set(OPEN_KEY, !element.hidden);
        if (element.hidden) return;
        // the check above it may have pushed it out of view
        element.scrollIntoView({ block: "start" });
        search.focus({ preventScroll: true });
    };
    listen("edits", () => {
        if (!element.hidden) load();
    });
    let filtered = "";
    listen("answer", () => {
        if (element.hidden) return;
        const now = JSON.stringify(filter.where());
        if (counting.scope === "matching" && now !== filtered) load();
        else draw();
        filtered = now;
    });
    show(Boolean(kept.get(OPEN_KEY)));
    return element;
}
