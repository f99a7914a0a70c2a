/*
 * State shared by the parts of the section "settings".
 */

/** @import { CheckpointView } from "../common/answers" */
/** @import { Settings } from "../common/types" */

/**
 * The drawn form. `waiting(is)`: shows whether a plan is being requested.
 *
 * @typedef {{update: () => void, redraw: () => void, showPlan: () => void,
 *     waiting: (is: boolean) => void}} Page
 */

/**
 * @typedef {object} State
 * @property {CheckpointView | null} facts facts about the chosen checkpoint; null while they are
 *     loaded
 * @property {Settings | null} ours the settings that were published last; other settings in the
 *     store come from another part of the tab
 * @property {Settings} stated the preset's and the user's settings, without the server's
 *     suggestions, which change with images and captions
 * @property {Page | null} page null before it is first shown
 * @property {string | null} drawnFor the dataset whose draft the form was drawn for
 */

/** @type {State} */
export const state = { facts: null, ours: null, stated: {}, page: null, drawnFor: null };
