// Types shared by the modules, besides those of the routes. For tsc only: the browser does not load
// this file.

import type { Card, CaptionerDraft, HomeView, ItemsView, PlanView, PostBodies } from "./answers";

/** Content of an element; null, undefined and false are skipped. */
export type Child = Node | string | number | false | null | undefined | Child[];

/** Attributes of an element; on... are event listeners, whose currentTarget is the element. */
export type Attributes<E> = {
    [K in keyof HTMLElementEventMap as `on${K}`]?:
        ((event: HTMLElementEventMap[K] & { currentTarget: E }) => unknown) | null;
} & {
    style?: Partial<CSSStyleDeclaration>;
    dataset?: Record<string, string>;
    [attribute: string]: unknown;
};

export type TextBox = HTMLInputElement | HTMLTextAreaElement;

/** A message for the user. */
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
    /** Whether it works without the server. */
    local?: boolean;
}

export interface DialogOptions {
    title: string;
    body: Child;
    /** Their onclick may return a promise; false keeps the dialog open. */
    actions?: ButtonOptions[];
    /** Use the available width. */
    wide?: boolean;
    /** Use the width of the content. */
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

/** Query for a page of images. The workbench uses all filters, the section "images" only the first two. */
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

/** A page of images, and the dataset's id. */
export type PageAnswer = ItemsView & { id: string };

export interface Poll {
    /** Poll immediately. */
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

/** An image for the viewer. `note`: text below it; `kind`: images of the same kind can be compared. */
export interface ViewerImage {
    url: string;
    label: string;
    note?: string;
    kind?: string;
}

/** The body of a POST request. */
export type Body<P> = P extends keyof PostBodies ? PostBodies[P] : Record<string, unknown>;

/** A dataset; `lost`: it was chosen, and no longer exists. */
export type KnownCard = Card & { lost?: boolean };

/** Config keys -> values. */
export type Settings = Record<string, unknown>;

/** The settings draft of a dataset. */
export interface Draft {
    /** An id; empty: it was deleted, null: not chosen yet. */
    preset: string | null;
    checkpoint: string;
    /** The id of the LoRA file to start from; empty: none. */
    init_lora: string;
    name: string;
    captioner: CaptionerDraft;
    changes: Settings;
}

/** The row of a setting, or of another choice. */
export interface Row {
    element: HTMLElement;
    input: HTMLElement;
    /** The element for its problems. */
    problem: HTMLElement;
    update: () => void;
}

/** The keys of the store (store.js). */
export interface Shared {
    language: string;
    home: HomeView;
    /** "lost": the WebUI does not respond; "stale": it was restarted, and the page must be reloaded. */
    connection: "" | "lost" | "stale";
    section: string;
    datasets: KnownCard[];
    /** The chosen dataset's id; empty: none. */
    dataset: string;
    /** Changes when another draft is shown. */
    draft: number;
    checkpoint: string;
    init_lora: string;
    name: string;
    preset: string | null;
    settings: Settings;
    plan: PlanView & { dataset: string };
    /** The id of the run that is shown. */
    run: string;
    /** The id of the LoRA to try. */
    try: string | null;
    /** The id of the run whose language model to ask; empty: show LoRAs of images instead; null: as
     * the chosen dataset. */
    ask: string | null;
    /** Number of deliveries since the page was opened. */
    delivered: number;
}
