// What the routes answer, and what they are sent. Made from lora_trainer/webui by tests/answers.py;
// do not change it here.

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

// The result of an upload. Format -> count, for images that the WebUI cannot decode.
export interface AcceptedView {
    added: AddedImage[];
    converted: Record<string, number>;
    waiting: Record<string, number>;
    captions: number;
    texts: number;
    skipped: SkippedFile[];
}

export interface AddedImage {
    key: string;
    name: string;
    width: number;
    height: number;
}

// A new entry, and the edit that added it.
export interface AddedText {
    item: TextItemView;
    edits: EditEnds;
    revision: string;
    edit: number;
}

// A finding of the verdict. `changes`: recommended settings for the next run; `section`: the
// section of the tab where it can be fixed, if no setting does.
export interface AdviceView {
    name: string;
    sentence: string;
    advice: string;
    changes: Record<string, unknown>;
    section: string;
}

// A language model's answer to a preview prompt.
export interface AnswerView {
    step: number;
    strength: number | null;
    prompt: string;
    answer: string;
}

// `step`: the saved step to ask; null: the newest.
export interface AskBody {
    question: string;
    strength: number;
    step: number | null;
    token: string;
}

// The last MOST_ANSWERS questions and answers, oldest first. `job`: the job that answers, if
// there was one; `count`: all answers.
export interface AskView {
    model: TrainedModel;
    job: RunView | null;
    answers: AnswerView[];
    count: number;
}

// A plan that was shown, or an action on some images.
export interface BulkBody {
    plan?: string;
    select?: SelectBody;
    action?: Record<string, unknown>;
}

export interface BulkPlan {
    plan: string;
    selected: number;
    changing: number;
    samples: BulkSample[];
}

export interface BulkSample {
    key: string;
    name: string;
    before: string;
    after: string;
}

export interface CaptionBody {
    key: string;
    caption: string;
    was: string;
    trigger: string;
    tokens: number;
}

export interface CaptionRunBody {
    select: SelectBody;
    captioner: string;
    options: Record<string, unknown>;
    trigger: string;
    only_missing: boolean;
    overwrite: boolean;
    token: string;
    when: "now" | "queue";
}

// The chosen captioner, and the options of each.
export interface CaptionerDraft {
    captioner?: string;
    options?: Record<string, Record<string, unknown>>;
}

export interface CaptionerNeeds {
    sentence: string;
}

export interface CaptionerView {
    name: string;
    title: string;
    sentence: string;
    model: string;
    download: number;
    download_text: string;
    memory_text: string;
    licence: string;
    on_disk: boolean;
    needs: CaptionerNeeds | null;
    fields: SettingView[];
}

// A dataset. For texts, `count` is the number of entries, and `captioned` of those that can be
// trained on.
export interface Card {
    id: string;
    name: string;
    path: string;
    external: boolean;
    kind: "images" | "texts";
    count: number;
    captioned: number;
    cover: string | null;
    changed: number;
    problem: Sentence | null;
    gone: boolean;
    draft: DraftView;
}

export interface CauseView {
    message: string;
    hint: string;
}

// What the WebUI loads of a LoRA file.
export interface CertificateView {
    name: string;
    family: string;
    layer_count: number;
    loaded: number | null;
    verdict: string;
    dropped: DroppedView[];
    causes: CauseView[];
    can_fix: boolean;
    measured: boolean;
}

export interface CheckBody {
    resolution: number;
    trigger: string;
    tokens: number;
}

export interface CheckChoice {
    resolution: number;
    trigger: string;
    tokens: number;
}

// The check of a dataset. `stale`: images were added, removed or changed since.
export interface CheckView {
    state: "none" | "waiting" | "running" | "done" | "stopped" | "failed";
    done: number;
    total: number;
    stale: boolean;
    settings: CheckChoice;
    error: Sentence | null;
    checked: number | null;
    sums: SumView[];
    clusters: Cluster[];
    revision: string;
}

export interface CheckpointList {
    checkpoints: ListedCheckpoint[];
    loaded: LoadedView | null;
}

// The chosen checkpoint, with the VAE and clip skip that the WebUI uses.
export interface CheckpointView {
    family: string | null;
    family_name: string | null;
    resolution: number | null;
    steps: number | null;
    cfg: number | null;
    caption_tokens: number | null;
    data: "images" | "texts";
    language_model: string | null;
    problem: string | null;
    hint: string | null;
    id: string | null;
    title: string;
    practice: boolean;
    vae: string | null;
    clip_skip: number | null;
    notes: string[];
}

// Keys of near-duplicates.
export interface Cluster {
    keys: string[];
    best: string;
}

export interface ComposedCaption {
    caption: string;
}

// A caption that was not changed, because someone else had changed it.
export interface ConflictView {
    key: string;
    name: string;
    current: string;
    message: string;
}

export interface CopyBody {
    select: SelectBody;
    name: string;
    size: number;
    buckets: boolean;
    subject: boolean;
}

// Where a LoRA was copied to.
export interface CopyOfLora {
    path: string;
}

// A cropping job and its progress.
export interface CopyView {
    id: string;
    state: "running" | "done" | "failed" | "stopped";
    done: number;
    total: number;
    dataset: string | null;
    card: Card | null;
    notes: Sentence[];
    error: Sentence | null;
}

// The result of removing or restoring images.
export interface CountedOutcome {
    title: string;
    changed: number;
    unchanged: number;
    conflicts: ConflictView[];
    edit: number | null;
    edits: EditEnds;
    revision: string;
    total: number;
    captioned: number;
}

// `available`: whether a tokenizer vocabulary is installed.
export interface CountedTokens {
    count: number;
    limit: number;
    kept_end: number;
    over: boolean;
    available: boolean;
}

export interface DeletedDataset {
    id: string;
    name: string;
    time: number;
}

export interface DepartureView {
    key: string;
    name: string;
    caption: string;
    fixed: string;
}

export interface Departures {
    count: number;
    list: DepartureView[];
}

// `changes`: config keys -> values set by the user.
export interface DraftValues {
    preset?: string;
    checkpoint?: string;
    init_lora?: string;
    name?: string;
    changes?: Record<string, unknown>;
    captioner?: CaptionerDraft;
}

// A dataset's settings draft.
export interface DraftView {
    values: DraftValues;
    revision: string;
    changed: number;
}

// Layers that are not loaded, for one reason.
export interface DroppedView {
    count: number;
    message: string;
    examples: string[];
}

// The edits that undo and redo would apply.
export interface EditEnds {
    undo: EditView | null;
    redo: EditView | null;
}

export interface EditList {
    edits: EditEnds;
    list: EditView[];
}

// An edit of captions or images.
export interface EditView {
    id: number;
    title: string;
    count: number;
    time: number;
    undone: boolean;
}

// Bytes of the encoded images and captions that are kept for the next training.
export interface EncodedSize {
    size: number;
}

export interface FactView {
    label: string;
    value: string;
}

// Which images; conditions that are not given are not applied.
export interface FilterBody {
    filter?: string;
    text?: string;
    lacks?: string;
    tag?: string;
    match?: string;
    without?: string;
    finding?: string;
    trigger?: string;
    tokens?: number;
}

// A finding of one image.
export interface FindingView {
    id: string;
    severity: "error" | "warning" | "info";
    kind: string;
    message: string;
    hint: string;
    measured: number | null;
    fix: FixView | null;
    related: string[];
}

export interface FixAll {
    label: string;
    count: number;
}

// The fix that a button applies. `box`: left, top, right, bottom in pixels.
export interface FixView {
    do: string;
    label: string;
    box?: number[];
}

export interface FormChoice {
    value: unknown;
    label: string;
}

// `terms`: search terms. `data`: the datasets it applies to; `text_label`, `text_help`: its
// label and help for datasets of texts.
export interface FormField {
    key: string;
    label: string;
    help: string;
    type: "text" | "lines" | "number" | "integer" | "auto_number" | "auto_integer" | "choice" | "flag" | "auto_flag" | "list" | "number_list" | "paragraph";
    choices: FormChoice[];
    minimum: number | null;
    maximum: number | null;
    above: number | null;
    step: number | null;
    default: unknown;
    optional: boolean;
    advanced: boolean;
    unit: string;
    terms: string;
    data: "images" | "texts" | "both";
    text_label: string;
    text_help: string;
}

export interface FormGroup {
    id: string;
    title: string;
    advanced: boolean;
    fields: FormField[];
}

export interface FormView {
    groups: FormGroup[];
}

// The data that the page loads first. A part that failed is None, with its error in
// `problems`.
export interface HomeView {
    version: string;
    language: string;
    languages: Language[];
    host: HostView;
    setup: SetupView | null;
    checkpoints: ListedCheckpoint[] | null;
    presets: PresetView[] | null;
    own_presets: OwnPresetList | null;
    preset: string;
    loaded: LoadedView | null;
    form: FormView | null;
    datasets: Card[] | null;
    problems: Record<string, Sentence>;
}

// The WebUI and its device. `remote`: reachable from other machines.
export interface HostView {
    kind: string;
    name: string;
    version: string;
    remote: boolean;
    device: string;
    cpu: boolean;
}

// LoRAs of this trainer, and name -> preferred weight of every LoRA that has one.
export interface Insertable {
    loras: LoraView[];
    weights: Record<string, number>;
}

// A LoRA file in the host's folders.
export interface InspectableView {
    id: string;
    name: string;
}

// An image with its caption and facts about both.
export interface ItemView {
    tokens: TokensView;
    captions: number;
    reviewed: boolean;
    author: "machine" | "person" | "nobody";
    findings: FindingView[];
    thumbnail: string;
    image: string;
    key: string;
    name: string;
    width: number;
    height: number;
    caption: string;
    source: "metadata" | "text" | "folder_name" | "trigger_word" | null;
    caption_file: string | null;
    changed: number;
}

// A page of images. `counts`: filter -> number of matches.
export interface ItemsView {
    total: number;
    matching: number;
    captioned: number;
    counts: Record<string, number>;
    revision: string;
    removed: number;
    edits: EditEnds;
    findings: RemarkView[];
    items: ItemView[];
}

// How much of a LoRA is kept with one setting of the WebUI.
export interface KeptSettingView {
    message: string;
    hint: string;
    lossy: boolean;
    chosen: boolean;
}

// How much of a LoRA is kept where the WebUI stores the model in low precision.
export interface KeptView {
    checkpoint: string;
    strength: number;
    layer_count: number;
    settings: KeptSettingView[];
}

export interface Language {
    code: string;
    name: string;
}

// Where the graphics card is.
export interface LeaseView {
    state: "idle" | "training" | "asking" | "lent" | "beside";
    sentence: string;
    before: MemoryView | null;
    after: MemoryView | null;
}

// `seen`: whether its header has been read.
export interface ListedCheckpoint {
    family: string | null;
    family_name: string | null;
    resolution: number | null;
    steps: number | null;
    cfg: number | null;
    caption_tokens: number | null;
    data: "images" | "texts";
    language_model: string | null;
    problem: string | null;
    hint: string | null;
    id: string;
    title: string;
    loaded: boolean;
    practice: boolean;
    seen: boolean;
}

// A run with new loss values. `whole`: the points are complete and replace earlier ones.
export interface LiveView {
    run: RunView;
    offset: number;
    whole: boolean;
    points: ((number | null)[])[];
    validations: ValidationView[];
    previews: PreviewView[];
    answers: AnswerView[];
    log: string[];
    handover: LeaseView;
    verdict: VerdictView | null;
    report: string | null;
}

// The checkpoint, VAE and clip skip that the host uses.
export interface LoadedView {
    family: string | null;
    family_name: string | null;
    resolution: number | null;
    steps: number | null;
    cfg: number | null;
    caption_tokens: number | null;
    data: "images" | "texts";
    language_model: string | null;
    problem: string | null;
    hint: string | null;
    id: string;
    title: string;
    in_memory: boolean;
    vae: string | null;
    clip_skip: number | null;
}

// A LoRA file that init_lora accepts.
export interface LoraFileView {
    id: string;
    name: string;
    ours: boolean;
}

// A LoRA to try: delivered, or a saved step.
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
    steps: number | null;
    cfg: number | null;
    sampler: string;
    scheduler: string;
    author: string;
    license: string;
    description: string;
    training_comment: string;
    preview: string | null;
    delivered: boolean;
    tag: string | null;
}

// Of the graphics card, in bytes.
export interface MemoryView {
    free: number;
    total: number;
}

export interface ModulesError {
    message: string;
    hint: string;
    label: string;
}

// URLs below lora-trainer/, and the messages if they cannot be loaded.
export interface ModulesView {
    start: string;
    all: string[];
    error: ModulesError;
}

// An empty answer.
export interface Nothing {
}

// The list with the language model that was added, and its id.
export interface OpenedModel {
    checkpoints: ListedCheckpoint[];
    loaded: LoadedView | null;
    id: string;
}

// The result of an edit.
export interface OutcomeView {
    title: string;
    changed: number;
    unchanged: number;
    conflicts: ConflictView[];
    edit: number | null;
    edits: EditEnds;
    revision: string;
}

export interface OwnPreset {
    id: string;
    title: string;
    why: string;
    values: Record<string, unknown>;
    family_values: Record<string, Record<string, unknown>>;
    notes: Record<string, string>;
    file: string;
}

export interface OwnPresetList {
    presets: OwnPreset[];
    problems: Sentence[];
}

// The job, and the new dataset that its pairs go into.
export interface PairRun {
    run: RunView;
    card: Card;
}

// `model`: the id of a language model; or `url`, the address of a server on this machine, and
// the name of its `served` model.
export interface PairRunBody {
    model?: string;
    url?: string;
    served?: string;
    count?: number;
    token?: string;
}

// `init_lora`: the id of a LoRA file to start from.
export interface PlanBody {
    dataset: string;
    checkpoint: string;
    name: string;
    settings: Record<string, unknown>;
    init_lora?: string;
}

// `field`: its place: a setting's key, "dataset", "checkpoint", "name", or null. `change`:
// settings that solve it, config keys -> values; empty if there are none.
export interface PlanProblem {
    field: string | null;
    severity: "error" | "warning" | "info";
    message: string;
    hint: string;
    change: Record<string, unknown>;
}

// The plan of a run. `resolved`: config key -> value for auto; `suggested`: config key -> value
// that is filled in until the user changes it.
export interface PlanView {
    ok: boolean;
    sentence: string;
    facts: FactView[];
    problems: PlanProblem[];
    target: string;
    steps: number | null;
    seconds: number | null;
    disk: number | null;
    resolved: Record<string, unknown>;
    suggested: Record<string, unknown>;
    unchecked: number;
}

export interface PresetBody {
    title: string;
    why: string;
    values: Record<string, unknown>;
    replace: boolean;
}

// Config keys -> values; `family_values`: overrides by family; `notes`: reasons.
export interface PresetView {
    id: string;
    title: string;
    why: string;
    values: Record<string, unknown>;
    family_values: Record<string, Record<string, unknown>>;
    notes: Record<string, string>;
}

// A preview.
export interface PreviewView {
    step: number;
    strength: number | null;
    prompt: string;
    url: string;
}

// What is active. `revision` changes when the list of runs may have changed.
export interface Pulse {
    active: RunProgress[];
    queued: number;
    handover: LeaseView;
    revision: string;
}

export interface RemarkOfText {
    severity: "error" | "warning" | "info";
    message: string;
    hint: string;
}

// A finding of the dataset; `each`: its first few sentences.
export interface RemarkView {
    severity: "error" | "warning" | "info";
    kind: string;
    message: string;
    hint: string;
    each: string[];
    count: number;
    fix: FixView | null;
}

export interface RemovedImage {
    key: string;
    name: string;
    caption: string;
    time: number;
}

export interface Reviewed {
    count: number;
    edits: EditEnds;
    revision: string;
}

export interface RunBody {
    dataset: string;
    checkpoint: string;
    name: string;
    settings: Record<string, unknown>;
    init_lora?: string;
    token: string;
    when: "now" | "queue";
}

// A draft. Ids are None for things that are not listed any more.
export interface RunDraft {
    settings: Record<string, unknown>;
    name: string;
    dataset: string | null;
    checkpoint: string | null;
    init_lora: string | null;
    growth: Record<string, unknown>;
}

export interface RunList {
    runs: RunView[];
    revision: string;
}

// A run without its warnings.
export interface RunProgress {
    id: string;
    name: string;
    job: "train" | "caption" | "ask" | "pairs";
    status: "queued" | "starting" | "running" | "pausing" | "paused" | "stopping" | "finished" | "stopped" | "failed" | "lost";
    exiting: boolean;
    position: number | null;
    family: string | null;
    data: "images" | "texts";
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
    preview: string | null;
    delivered: string | null;
    lora: string | null;
    file: string | null;
    failure: Sentence | null;
    can: Abilities;
    sentence: string;
}

// A run.
export interface RunView {
    id: string;
    name: string;
    job: "train" | "caption" | "ask" | "pairs";
    status: "queued" | "starting" | "running" | "pausing" | "paused" | "stopping" | "finished" | "stopped" | "failed" | "lost";
    exiting: boolean;
    position: number | null;
    family: string | null;
    data: "images" | "texts";
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
    preview: string | null;
    delivered: string | null;
    lora: string | null;
    file: string | null;
    failure: Sentence | null;
    can: Abilities;
    sentence: string;
    warnings: Sentence[];
}

export interface Samplers {
    samplers: string[];
    schedulers: string[];
}

// An image whose caption was saved.
export interface SavedItem {
    tokens: TokensView;
    captions: number;
    reviewed: boolean;
    author: "machine" | "person" | "nobody";
    findings: FindingView[];
    thumbnail: string;
    image: string;
    key: string;
    name: string;
    width: number;
    height: number;
    caption: string;
    source: "metadata" | "text" | "folder_name" | "trigger_word" | null;
    caption_file: string | null;
    changed: number;
    edits: EditEnds;
    revision: string;
}

// `saved`: its id.
export interface SavedPreset {
    presets: OwnPreset[];
    problems: Sentence[];
    saved: string;
}

// An entry after a change.
export interface SavedText {
    item: TextItemView;
    edits: EditEnds;
    revision: string;
}

// Images by keys, or by a filter.
export interface SelectBody {
    keys?: string[];
    where?: FilterBody;
}

// An error or notice, and what to do.
export interface Sentence {
    message: string;
    hint: string;
}

// One setting, for drawing. `optional`: may be empty, for auto.
export interface SettingView {
    key: string;
    label: string;
    help: string;
    type: "text" | "lines" | "number" | "integer" | "auto_number" | "auto_integer" | "choice" | "flag" | "auto_flag" | "list" | "number_list" | "paragraph";
    choices: FormChoice[];
    minimum: number | null;
    maximum: number | null;
    above: number | null;
    step: number | null;
    default: unknown;
    optional: boolean;
    advanced: boolean;
    unit: string;
}

// The state of the worker's packages. `report` is empty unless requested.
export interface SetupView {
    state: "ready" | "missing" | "broken" | "installing" | "failed";
    message: string;
    hint: string;
    lines: string[];
    seconds: number;
    megabytes: number;
    report: string;
}

// Images, or a caption being typed, and the settings to try.
export interface ShuffleBody {
    keys?: string[];
    caption?: string;
    trigger?: string;
    shuffle?: boolean;
    keep_tokens?: number;
    dropout?: number;
    seed?: number;
}

// `kept_caption`: skipped because the image already has a caption.
export interface SkippedFile {
    name: string;
    message: string;
    hint: string;
    kept_caption: boolean;
}

// Field -> text.
export interface SplitCaption {
    fields: Record<"subject" | "action" | "features" | "scene" | "style" | "light" | "colour", string>;
}

// A group of findings, with the fix for all of them.
export interface SumView {
    kind: string;
    label: string;
    severity: "error" | "warning" | "info";
    message: string;
    hint: string;
    images: number;
    fix: FixAll | null;
}

export interface TagCountView {
    tag: string;
    count: number;
}

export interface TagTableView {
    kind: "tags" | "words";
    mostly: "tags" | "sentences";
    images: number;
    distinct: number;
    tags: TagCountView[];
}

export interface TemplateField {
    name: "subject" | "action" | "features" | "scene" | "style" | "light" | "colour";
    label: string;
    example: string;
}

// The fields of a caption, in order.
export interface TemplateView {
    order: ("subject" | "action" | "features" | "scene" | "style" | "light" | "colour")[];
    fields: TemplateField[];
}

// `texts`: of all fields, in their order.
export interface TextBody {
    key: string;
    texts: string[];
}

export interface TextFieldView {
    role: "system" | "user" | "context" | "assistant" | "text";
    label: string;
    text: string;
}

// A file. `count`: entries; `usable`: those that can be trained on; `plain`: whether it has
// plain texts, from which pairs can be made.
export interface TextFileView {
    name: string;
    count: number;
    usable: number;
    plain: boolean;
}

// An entry. Without `fields` it cannot be edited; `raw` is then its text in the file.
export interface TextItemView {
    key: string;
    name: string;
    file: string;
    fields: TextFieldView[];
    raw: string;
    findings: RemarkOfText[];
}

export interface TextsUnchanged {
    unchanged: true;
    revision: string;
}

// A page of texts. Numbers of entries: `total`; `usable`, that can be trained on; `matching`
// the search; `found`, that have findings.
export interface TextsView {
    total: number;
    usable: number;
    matching: number;
    found: number;
    revision: string;
    edits: EditEnds;
    files: TextFileView[];
    findings: RemarkView[];
    items: TextItemView[];
}

export interface TokensBody {
    caption: string;
    trigger: string;
    limit: number;
}

// `kept_end`: index of the first truncated character.
export interface TokensView {
    count: number;
    limit: number;
    kept_end: number;
    over: boolean;
}

// A run that can be asked. `steps`: the saved ones, oldest first; `strength`: the best one
// according to the verdict, or 1; `folder`: path of its newest LoRA, "" for remote users.
export interface TrainedModel {
    id: string;
    name: string;
    base: string;
    steps: number[];
    best_step: number | null;
    strength: number;
    folder: string;
    changed: number | null;
}

// A caption, and examples of what training reads of it in different steps.
export interface TrainedSample {
    key: string;
    name: string;
    caption: string;
    trained: string[];
}

export interface TrainedSamples {
    samples: TrainedSample[];
}

// The number of deleted runs and datasets, and their size in bytes.
export interface TrashLoad {
    count: number;
    size: number;
}

// `trash`: id of what was deleted, in the trash; empty if nothing was moved.
export interface Trashed {
    trash: string;
}

// How the model tokenizes and knows a trigger word before training.
export interface TriggerRemark {
    available: boolean;
    is_good: boolean;
    message: string;
    hint: string;
}

// `loras`: the saved steps of a matrix.
export interface TryBody {
    kind: "pair" | "grid" | "matrix";
    lora: string | null;
    prompt: string;
    negative: string;
    seed: number;
    steps: number;
    cfg: number;
    width: number;
    height: number;
    sampler: string;
    scheduler: string;
    strengths: number[];
    loras?: string[];
}

export interface TryImage {
    url: string;
    label: string;
    strength: number;
    step: number | null;
    lora: string | null;
}

// A comparison and its images so far.
export interface TryView {
    id: string;
    kind: "pair" | "grid" | "matrix";
    status: "waiting" | "making" | "done" | "failed" | "cancelled";
    done: number;
    total: number;
    step: number;
    step_count: number;
    images: TryImage[];
    sheet: string | null;
    infotext: string;
    prompt: string;
    seed: number;
    loras: string[];
    strengths: number[];
    notes: string[];
    sentence: string;
    error: Sentence | null;
    started: number;
}

// The page is unchanged.
export interface Unchanged {
    unchanged: true;
    revision: string;
}

// Losses under fixed noise at a step: of training images, and of held-out ones.
export interface ValidationView {
    step: number;
    training: number | null;
    validation: number | null;
}

// The verdict on a run.
export interface VerdictView {
    best_step: number;
    strength: number | null;
    sentence: string;
    details: string;
    findings: AdviceView[];
}

// Preferred words for each field, and for the start of captions.
export interface VocabularyView {
    opening: string;
    fields: Record<string, string[]>;
    exists: boolean;
    departures: Departures;
}

export interface GetAnswers {
    "asks": TrainedModel[];
    [path: `asks/${string}/answers`]: AskView;
    "captioners": CaptionerView[];
    "checkpoints": CheckpointList;
    [path: `crop-copies/${string}`]: CopyView;
    "datasets": Card[];
    [path: `datasets/${string}/caption-run`]: RunView | Nothing;
    [path: `datasets/${string}/check`]: CheckView;
    [path: `datasets/${string}/draft`]: DraftView;
    [path: `datasets/${string}/edits`]: EditList;
    [path: `datasets/${string}/encoded`]: EncodedSize;
    [path: `datasets/${string}/items`]: ItemsView | Unchanged;
    [path: `datasets/${string}/pair-run`]: RunView | Nothing;
    [path: `datasets/${string}/removed`]: RemovedImage[];
    [path: `datasets/${string}/tags`]: TagTableView;
    [path: `datasets/${string}/template`]: TemplateView;
    [path: `datasets/${string}/texts`]: TextsView | TextsUnchanged;
    [path: `datasets/${string}/vocabulary`]: VocabularyView;
    "deleted-datasets": DeletedDataset[];
    "home": HomeView;
    "insertable": Insertable;
    "inspectable": InspectableView[];
    [path: `inspectable/${string}/certificate`]: CertificateView;
    [path: `inspectable/${string}/kept`]: KeptView;
    "loras": LoraView[];
    "modules": ModulesView;
    "pulse": Pulse;
    "runs": RunList;
    [path: `runs/${string}/config`]: string;
    [path: `runs/${string}/draft`]: RunDraft;
    [path: `runs/${string}/live`]: LiveView;
    [path: `runs/${string}/log`]: string;
    "samplers": Samplers;
    "setup": SetupView;
    "startable": LoraFileView[];
    [path: `texts/${string}`]: Record<string, string>;
    "trash": TrashLoad;
    "tries": TryView[];
    [path: `tries/${string}`]: TryView;
    "trigger": TriggerRemark;
}

export interface PostAnswers {
    [path: `asks/${string}/ask`]: AskView;
    [path: `asks/${string}/copy`]: CopyOfLora;
    "checkpoint": CheckpointView;
    "checkpoints/open": OpenedModel;
    [path: `crop-copies/${string}/stop`]: CopyView;
    "datasets": Card;
    "datasets/open": Card;
    [path: `datasets/${string}/add-text`]: AddedText;
    [path: `datasets/${string}/bulk`]: OutcomeView;
    [path: `datasets/${string}/bulk/preview`]: BulkPlan;
    [path: `datasets/${string}/caption`]: SavedItem;
    [path: `datasets/${string}/caption-run`]: RunView;
    [path: `datasets/${string}/check`]: CheckView;
    [path: `datasets/${string}/check/stop`]: CheckView;
    [path: `datasets/${string}/compose`]: ComposedCaption;
    [path: `datasets/${string}/convert`]: OutcomeView;
    [path: `datasets/${string}/crop-copy`]: CopyView;
    [path: `datasets/${string}/delete`]: Trashed;
    [path: `datasets/${string}/delete-encoded`]: EncodedSize;
    [path: `datasets/${string}/draft`]: DraftView;
    [path: `datasets/${string}/fix`]: OutcomeView;
    [path: `datasets/${string}/folder`]: Nothing;
    [path: `datasets/${string}/pair-run`]: PairRun;
    [path: `datasets/${string}/redo`]: OutcomeView;
    [path: `datasets/${string}/remove`]: CountedOutcome;
    [path: `datasets/${string}/remove-text-file`]: OutcomeView;
    [path: `datasets/${string}/remove-texts`]: OutcomeView;
    [path: `datasets/${string}/rename`]: Card;
    [path: `datasets/${string}/restore`]: CountedOutcome;
    [path: `datasets/${string}/reviewed`]: Reviewed;
    [path: `datasets/${string}/shuffle`]: TrainedSamples;
    [path: `datasets/${string}/split`]: SplitCaption;
    [path: `datasets/${string}/template`]: TemplateView;
    [path: `datasets/${string}/text`]: SavedText;
    [path: `datasets/${string}/undo`]: OutcomeView;
    [path: `datasets/${string}/upload`]: AcceptedView;
    [path: `datasets/${string}/vocabulary`]: VocabularyView;
    [path: `deleted-datasets/${string}/restore`]: Card;
    [path: `inspectable/${string}/fix`]: CertificateView;
    [path: `loras/${string}/deliver`]: LoraView;
    [path: `loras/${string}/strength`]: LoraView;
    "plan": PlanView;
    "presets": SavedPreset;
    [path: `presets/${string}/delete`]: OwnPresetList;
    "runs": RunView;
    [path: `runs/${string}/ask`]: RunView;
    [path: `runs/${string}/continue`]: RunView;
    [path: `runs/${string}/delete`]: Trashed;
    [path: `runs/${string}/folder`]: Nothing;
    [path: `runs/${string}/move`]: RunList;
    [path: `runs/${string}/unqueue`]: RunView;
    "setup": SetupView;
    "tokens": CountedTokens;
    "trash/empty": TrashLoad;
    [path: `trash/${string}/restore`]: RunView;
    "tries": TryView;
    [path: `tries/${string}/cancel`]: TryView;
    [path: `tries/${string}/delete`]: Nothing;
    [path: `tries/${string}/restore`]: TryView;
}

export interface PostBodies {
    [path: `asks/${string}/ask`]: AskBody;
    [path: `datasets/${string}/bulk`]: BulkBody;
    [path: `datasets/${string}/caption`]: CaptionBody;
    [path: `datasets/${string}/caption-run`]: CaptionRunBody;
    [path: `datasets/${string}/check`]: CheckBody;
    [path: `datasets/${string}/crop-copy`]: CopyBody;
    [path: `datasets/${string}/pair-run`]: PairRunBody;
    [path: `datasets/${string}/shuffle`]: ShuffleBody;
    [path: `datasets/${string}/text`]: TextBody;
    "plan": PlanBody;
    "presets": PresetBody;
    "runs": RunBody;
    "tokens": TokensBody;
    "tries": TryBody;
}
