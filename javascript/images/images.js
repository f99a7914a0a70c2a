/*
 * Thumbnails, enlarged images and findings about the dataset, for both image sections.
 */
import { api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { dotted, formatNumber, plural, t } from "../common/language.js";
import { store } from "../common/store.js";
import * as viewer from "../common/viewer.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "./datasets.js";

/** @import { ItemView, RemarkView } from "../common/answers" */
/** @import { Remark } from "../common/types" */

/** @import { ImagePages } from "./pages.js" */

/** Findings about the whole dataset, collapsed if long; the page is reloaded after a fix. */
export function remarksCard(
    /** @type {RemarkView[]} */ findings,
    /** @type {ImagePages | null} */ pages,
) {
    if (!findings.length) return null;
    const lines = findings.map((finding) =>
        el(
            "li",
            finding.message,
            hintBehind(finding),
            " ",
            finding.fix &&
                pages &&
                widgets.button({ label: finding.fix.label, onclick: () => convert(pages) }),
            finding.each.length
                ? el(
                      "details",
                      el("summary.lora-trainer-help", t("Which ones")),
                      el(
                          "ul",
                          finding.each.map((one) => el("li.lora-trainer-help", one)),
                          finding.count > finding.each.length
                              ? el(
                                    "li.lora-trainer-help",
                                    t("and {count} more", {
                                        count: formatNumber(finding.count - finding.each.length),
                                    }),
                                )
                              : null,
                      ),
                  )
                : null,
        ),
    );
    return el(
        "details.lora-trainer-remarks",
        { open: findings.length <= 3 || findings.some((finding) => finding.fix) },
        el(
            "summary",
            plural(
                findings.length,
                "{count} issue with this dataset",
                "{count} issues with this dataset",
            ),
        ),
        el("ul", lines),
    );
}

/** Convert all images of the dataset that browsers cannot show to JPEG or PNG. */
async function convert(/** @type {ImagePages} */ pages) {
    const again = async () => {
        await datasets.refresh();
        await pages.load();
    };
    const id = store.get("dataset");
    const { changed, conflicts, edit } = await api.post(datasets.path("convert", id), {});
    if (changed)
        widgets.toast(plural(changed, "{count} image converted", "{count} images converted"), {
            severity: "done",
            seconds: 10,
            action: {
                label: t("Undo"),
                onclick: async () => {
                    await api.post(datasets.path("undo", id), { id: edit });
                    await again();
                },
            },
        });
    if (conflicts.length) {
        widgets.dialog({
            title: plural(
                conflicts.length,
                "{count} image could not be converted",
                "{count} images could not be converted",
            ),
            body: el(
                "ul",
                conflicts.map((conflict) => el("li", conflict.message)),
            ),
            actions: [widgets.closing()],
        });
    }
    await again();
}

/** A hint after its message. */
export const hintBehind = (/** @type {Remark} */ { hint }) =>
    hint ? widgets.small(" " + hint) : null;

export const sizeText = (/** @type {{width: number, height: number}} */ item) =>
    item.width ? item.width + " \u00d7 " + item.height : "";

/** Enlarge the page's images, starting with one of them. */
export const enlarge = (/** @type {ItemView[]} */ items, /** @type {ItemView} */ item) =>
    viewer.open(
        items.map((one) => ({
            url: one.image,
            label: one.name,
            note: dotted(sizeText(one), one.caption),
        })),
        items.indexOf(item),
    );

/** A thumbnail in a box of fixed aspect ratio, with a message if the image cannot be shown. */
export function thumbnail(/** @type {{thumbnail: string}} */ item) {
    const image = el("img", {
        src: item.thumbnail,
        alt: "",
        loading: "lazy",
        decoding: "async",
        draggable: "false",
    });
    const box = el("span.lora-trainer-thumb", image);
    image.addEventListener("error", () =>
        fill(box, el("span.lora-trainer-thumb-broken", t("Cannot be shown"))),
    );
    return box;
}
