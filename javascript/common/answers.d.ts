// What the routes answer. Made from lora_trainer/webui by tests/answers.py; do not change it here.

// What went wrong, or is to be known, and what to try.
export interface Sentence {
    message: string;
    hint: string;
}

export interface Abilities {
    pause: boolean;
    resume: boolean;
    stop: boolean;
    save: boolean;
    preview: boolean;
    continue: boolean;
    further: boolean;
    delete: boolean;
    move: boolean;
    unqueue: boolean;
}

// A run, at work or not.
export interface RunView {
    id: string;
    name: string;
    job: "train" | "caption";
    status: "queued" | "starting" | "running" | "pausing" | "paused" | "stopping" | "finished" | "stopped" | "failed" | "lost";
    position: number | null;
    family: string | null;
    checkpoint: string;
    dataset: string;
    has_preview_prompts: boolean;
    step: number;
    step_count: number;
    epoch: number;
    epoch_count: number;
    phase: string;
    phase_step: number;
    phase_total: number;
    loss: number | null;
    smoothed_loss: number | null;
    images_per_second: number | null;
    seconds_left: number | null;
    memory: number | null;
    started: number | null;
    changed: number | null;
    picture: string | null;
    delivered: string | null;
    lora: string | null;
    failure: Sentence | null;
    warnings: Sentence[];
    can: Abilities;
    sentence: string;
}

// A picture that a run has made on its way.
export interface PreviewView {
    step: number;
    strength: number | null;
    prompt: string;
    url: string;
}

export interface RunList {
    runs: RunView[];
    revision: string;
}

// What has happened in a run since it was asked last. `whole`: the points are all there are.
export interface LiveView {
    run: RunView;
    offset: number;
    whole: boolean;
    points: ((number | null)[])[];
    previews: PreviewView[];
    log: string[];
    handover: Record<string, unknown>;
}

// A LoRA to try: delivered, or a saved step of a run.
export interface LoraView {
    id: string;
    name: string;
    file: string;
    run: string | null;
    step: number | null;
    trigger: string;
    preferred_weight: number;
    grid: number[];
    matrix: number[];
    family: string | null;
    resolution: number | null;
    picture: string | null;
    delivered: boolean;
    tag: string | null;
}

export interface ModulesTrouble {
    message: string;
    hint: string;
    label: string;
}

// Addresses below lora-trainer/, and what to say where they cannot be loaded.
export interface ModulesView {
    start: string;
    all: string[];
    trouble: ModulesTrouble;
}
