/*
 * What the parts of the section "settings" share.
 */
export const state = {
    /** What the chosen checkpoint is, as the server says it; null while that is asked. */
    facts: null,

    /**
     * The settings that were published last: what another part of the tab puts there is another.
     */
    ours: null,

    /**
     * What the preset and the visitor say, without what the server only suggests: that changes with
     * images and words.
     */
    stated: null,

    /**
     * The drawn form: {update(), redraw(), showPlan(), waiting()}; null before it is first shown.
     */
    page: null,

    /** The dataset whose draft the form was drawn for. */
    drawnFor: null,
};
