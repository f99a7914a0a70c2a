/*
 * What both sections show of images: thumbnails, large pictures, remarks about the dataset.
 */
import { api } from "../common/api.js";
import { el, fill } from "../common/elements.js";
import { formatNumber, plural, t } from "../common/language.js";
import * as viewer from "../common/viewer.js";
import * as widgets from "../common/widgets.js";
import * as datasets from "./datasets.js";

/**
 * What was found about the dataset as a whole, folded together when it is long; the page is read
 * again when something was mended.
 */
export function remarksCard(findings, pages) {
    if (!findings.length) return null;
    const mend = (finding) =>
        finding.mend
            ? widgets.button({ label: finding.mend.label, onclick: () => convert(pages) })
            : null;
    const lines = findings.map((finding) =>
        el(
            "li",
            {},
            finding.message,
            finding.hint ? el("span", { class: "lora-trainer-help" }, " " + finding.hint) : null,
            " ",
            mend(finding),
            finding.each.length
                ? el(
                      "details",
                      {},
                      el("summary", { class: "lora-trainer-help" }, t("Which ones")),
                      el(
                          "ul",
                          {},
                          finding.each.map((one) => el("li", { class: "lora-trainer-help" }, one)),
                          finding.count > finding.each.length
                              ? el(
                                    "li",
                                    { class: "lora-trainer-help" },
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
        "details",
        {
            class: "lora-trainer-remarks",
            open: findings.length <= 3 || findings.some((finding) => finding.mend),
        },
        el(
            "summary",
            {},
            plural(
                findings.length,
                "{count} remark about this dataset",
                "{count} remarks about this dataset",
            ),
        ),
        el("ul", {}, lines),
    );
}

/** Pictures that the WebUI cannot show -> JPEG or PNG, all of the dataset at once. */
async function convert(pages) {
    const again = async () => {
        await datasets.refresh();
        await pages.load();
    };
    const undo = async () => {
        await api.post(datasets.path("undo"), {});
        await again();
    };
    const { changed, conflicts } = await api.post(datasets.path("convert"), {});
    if (changed)
        widgets.toast(plural(changed, "{count} picture converted", "{count} pictures converted"), {
            severity: "done",
            seconds: 10,
            action: { label: t("Undo"), onclick: undo },
        });
    if (conflicts.length) {
        widgets.dialog({
            title: plural(
                conflicts.length,
                "{count} picture could not be converted",
                "{count} pictures could not be converted",
            ),
            body: el(
                "ul",
                {},
                conflicts.map((conflict) => el("li", {}, conflict.message)),
            ),
            actions: [{ label: t("Close"), kind: "primary" }],
        });
    }
    await again();
}

/** Show the page's pictures large, beginning with one of them. */
export const enlarge = (items, item) =>
    viewer.open(
        items.map((one) => ({
            url: one.picture,
            label: one.name,
            note: [one.width ? one.width + " \u00d7 " + one.height : "", one.caption]
                .filter(Boolean)
                .join(" \u00b7 "),
        })),
        items.indexOf(item),
    );

/** A thumbnail in a box of fixed shape; says so where the picture cannot be shown. */
export function thumbnail(item) {
    const image = el("img", {
        src: item.thumbnail,
        alt: "",
        loading: "lazy",
        decoding: "async",
        draggable: "false",
    });
    const box = el("span", { class: "lora-trainer-thumb" }, image);
    image.addEventListener("error", () =>
        fill(box, el("span", { class: "lora-trainer-thumb-broken" }, t("Cannot be shown"))),
    );
    return box;
}
