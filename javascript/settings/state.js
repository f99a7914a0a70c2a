/*
 * State shared by the parts of the section "settings".
 */

/** @import { CheckpointView } from "../common/answers" */
/** @import { Settings } from "../common/types" */

/**
 * The drawn form. `waiting`: whether the plan is being asked for.
 *
 * @typedef {{update: () => void, redraw: () => void, showPlan: () => void,
 *     waiting: (is: boolean) => void}} Page
 */

/**
 * @typedef {object} State
 * @property {CheckpointView | null} facts what the chosen checkpoint is, as the server says it; null
 *     while that is asked
 * @property {Settings | null} ours the settings that were published last: what another part of the
 *     tab puts there is another
 * @property {Settings} stated what the preset and the visitor say, without what the server only
 *     suggests: that changes with images and words
 * @property {Page | null} page null before it is first shown
 * @property {string | null} drawnFor the dataset whose draft the form was drawn for
 */

/** @type {State} */
export const state = { facts: null, ours: null, stated: {}, page: null, drawnFor: null };
