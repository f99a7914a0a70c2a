/*
 * A language model's answers to the sample questions during training.
 */
import { el, redraw } from "../common/elements.js";
import { t } from "../common/language.js";
import * as widgets from "../common/widgets.js";
import * as loraTags from "../prompt/lora_tags.js";

/** @import { AnswerView } from "../common/answers" */

const strengthOf = (/** @type {AnswerView} */ answer) =>
    answer.strength === null
        ? ""
        : t("Strength {strength}", { strength: loraTags.format(answer.strength) });

/** Newest step first; each question with its answers at all strengths. */
export function answerList() {
    const place = el("div.lora-trainer-answers");
    const element = el("div.lora-trainer-previews-box", el("h4", t("Answers")), place);
    return {
        element,
        set(/** @type {AnswerView[]} */ answers) {
            redraw(place, JSON.stringify(answers), () => {
                if (!answers.length)
                    return widgets.help(t("Answers to the sample questions appear here."));
                const steps = [...new Set(answers.map((answer) => answer.step))];
                return steps
                    .sort((a, b) => b - a)
                    .map((step) => [
                        el("h5", step ? t("Step {step}", { step }) : t("Before training")),
                        ofStep(answers.filter((answer) => answer.step === step)),
                    ]);
            });
        },
    };
}

function ofStep(/** @type {AnswerView[]} */ answers) {
    const questions = [...new Set(answers.map((answer) => answer.prompt))];
    return el(
        "dl",
        questions.map((question) => [
            el("dt", question),
            answers
                .filter((answer) => answer.prompt === question)
                .map((answer) => el("dd", answer.answer, " ", el("small", strengthOf(answer)))),
        ]),
    );
}
