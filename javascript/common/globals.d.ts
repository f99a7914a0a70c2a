// Functions that the WebUI's page provides to extensions, and the tab's object for the console.

declare function gradioApp(): Document | ShadowRoot | HTMLElement;
declare function onUiLoaded(callback: () => void): void;
declare function onUiTabChange(callback: () => void): void;
declare function onOptionsChanged(callback: () => void): void;
declare function updateInput(box: HTMLElement): void;

interface Window {
    switch_to_txt2img?: () => void;
    switch_to_img2img?: () => void;
    loraTrainer: Record<string, unknown>;
}
