// What the modules share and no route answers. For tsc only: the browser loads none of it.

import type { Card, CaptionerDraft, HomeView, ItemsView, PlanView, PostBodies } from "./answers";

/** What can stand in an element; of null, undefined and false nothing is seen. */
export type Child = Node | string | number | false | null | undefined | Child[];

/** Of an element: on... are listeners, which know the element that they were given to. */
export type Attributes<E> = {
    [K in keyof HTMLElementEventMap as `on${K}`]?:
        ((event: HTMLElementEventMap[K] & { currentTarget: E }) => unknown) | null;
} & {
    style?: Partial<CSSStyleDeclaration>;
    dataset?: Record<string, string>;
    [attribute: string]: unknown;
};

export type TextBox = HTMLInputElement | HTMLTextAreaElement;

/** Something that went wrong or is to be known, in words. */
export interface Remark {
    message: string;
    hint?: string;
}

export type ButtonKind = "primary" | "secondary" | "stop";

export interface ButtonOptions {
    label: string;
    kind?: ButtonKind;
    /** May return a promise: the button is busy until it settles. */
    onclick?: (event?: MouseEvent) => unknown;
    disabled?: boolean;
    title?: string;
    /** It needs nothing of the server. */
    local?: boolean;
}

export interface DialogOptions {
    title: string;
    body: Child;
    /** Their onclick may return a promise, or false to stay. */
    actions?: ButtonOptions[];
    /** As wide as there is room for. */
    wide?: boolean;
    /** As wide as what is in it. */
    fit?: boolean;
    onclose?: () => void;
}

export interface ToastOptions {
    severity?: "info" | "warning" | "error" | "done";
    hint?: string;
    action?: { label: string; onclick: () => unknown } | null;
    seconds?: number;
}

export interface TextOptions {
    value?: string;
    placeholder?: string;
    oninput?: (text: string) => unknown;
    onchange?: (text: string) => unknown;
    maxlength?: number;
    label?: string;
    id?: string;
}

export interface NumberOptions {
    value: number;
    minimum: number;
    maximum?: number;
    step?: number;
    id?: string;
    oninput?: (value: number) => unknown;
}

export interface Option {
    value: string;
    label: string;
    disabled?: boolean;
}

export interface SelectOptions {
    value?: string;
    options: Option[];
    onchange?: (value: string) => unknown;
    label?: string;
    id?: string;
}

export interface SliderOptions {
    label: string;
    value: number;
    minimum: number;
    maximum: number;
    step: number;
    /** A recommended value. */
    mark?: { value: number; label: string } | null;
    onchange: (value: number) => unknown;
}

/** Which images of a dataset, and in which order; filters besides the first two are the workbench's. */
export interface PageQuery {
    offset: number;
    order: string;
    filter: string;
    text: string;
    lacks: string;
    tag: string;
    match: string;
    without: string;
    finding: string;
    trigger?: string;
    tokens?: number;
}

/** A page of images, and of which dataset. */
export type PageAnswer = ItemsView & { id: string };

export interface Poll {
    /** Ask at once. */
    wake: () => void;
    stop: () => void;
}

/** One of the tab's steps: drawn when it is first shown. */
export interface Section {
    id: string;
    title: () => string;
    draw: (container: HTMLElement) => void;
    shown?: () => void;
    hidden?: () => void;
}

/** A picture to look at. `note` stands below it; those of one `kind` are worth comparing. */
export interface ViewerImage {
    url: string;
    label: string;
    note?: string;
    kind?: string;
}

/** What a route is sent. */
export type Body<P> = P extends keyof PostBodies ? PostBodies[P] : Record<string, unknown>;

/** A dataset; `lost`: it is not there any more, and was chosen. */
export type KnownCard = Card & { lost?: boolean };

/** Config keys -> values. */
export type Settings = Record<string, unknown>;

/** What is set for a dataset and not trained yet. */
export interface Draft {
    /** An id; empty: none any more, null: not chosen yet. */
    preset: string | null;
    checkpoint: string;
    /** The id of the LoRA file that training begins with; empty: none. */
    init_lora: string;
    name: string;
    captioner: CaptionerDraft;
    changes: Settings;
}

/** A setting, or something else that is chosen, as it is drawn. */
export interface Row {
    element: HTMLElement;
    input: HTMLElement;
    /** Where what is wrong with it is said. */
    problem: HTMLElement;
    update: () => void;
}

/** What the sections share (store.js). */
export interface Shared {
    language: string;
    home: HomeView;
    /** Whether the WebUI is there, and still the one that this page belongs to. */
    connection: "" | "lost" | "stale";
    section: string;
    datasets: KnownCard[];
    /** The chosen dataset's id; empty: none. */
    dataset: string;
    /** Another number whenever the draft is another one. */
    draft: number;
    checkpoint: string;
    init_lora: string;
    name: string;
    preset: string | null;
    settings: Settings;
    plan: PlanView & { dataset: string };
    /** The id of the run that is shown. */
    run: string;
    /** The id of the LoRA that somebody wants to try. */
    try: string | null;
    /** The id of the run whose language model somebody wants to ask; empty: none, null: as the
     * dataset is. */
    ask: string | null;
    /** How many deliveries there were since the page was opened. */
    delivered: number;
}
