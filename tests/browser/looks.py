"""What a page is asked about its looks: names of controls, contrast, width, foreign words. Each
answer is a list of complaints.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

NAMELESS = r"""root => [...root.querySelectorAll('button, input, select, textarea, a[href], [role=button], [role=tab], [role=slider], [role=radio], [role=option], [role=progressbar], img')]
    .filter(control => control.type !== 'hidden' && control.checkVisibility() && control.getAttribute('aria-hidden') !== 'true' && !control.closest('[aria-hidden=true]'))
    .filter(control => {
        if (control.tagName === 'IMG') return !control.hasAttribute('alt');
        const by = (control.getAttribute('aria-labelledby') || '').split(/\s+/).filter(Boolean).map(id => document.getElementById(id)?.textContent || '').join('');
        const labels = [...(control.labels || [])].map(label => label.textContent).join('');
        const images = [...control.querySelectorAll('img[alt], [aria-label]')].map(inner => inner.getAttribute('alt') || inner.getAttribute('aria-label')).join('');
        const own = ['INPUT', 'SELECT', 'TEXTAREA'].includes(control.tagName) ? '' : control.textContent;
        return ![control.getAttribute('aria-label'), by, labels, own, images, control.title].some(name => name && /[\p{L}\p{N}]/u.test(name));
    })
    .map(control => control.outerHTML.slice(0, 160))"""

# the primary button, and a chosen one, wears the host's own colours, as its Generate does: a
# theme's choice, not ours
PALE = r"""root => {
    const canvas = document.createElement('canvas'); canvas.width = canvas.height = 1;
    const pen = canvas.getContext('2d', {willReadFrequently: true});
    const once = make => { const made = new Map(); return key => { if (!made.has(key)) made.set(key, make(key)); return made.get(key); }; };
    const rgba = once(text => { pen.clearRect(0, 0, 1, 1); pen.fillStyle = text; pen.fillRect(0, 0, 1, 1); const [r, g, b, a] = pen.getImageData(0, 0, 1, 1).data; return [r, g, b, a / 255]; });
    const over = (top, below) => [0, 1, 2].map(i => top[i] * top[3] + below[i] * (1 - top[3])).concat(1);
    const light = colour => { const [r, g, b] = colour.map(part => { const share = part / 255; return share <= 0.04045 ? share / 12.92 : ((share + 0.055) / 1.055) ** 2.4; }); return 0.2126 * r + 0.7152 * g + 0.0722 * b; };
    // what stands behind an element; null: an image
    const ground = once(element => {
        const below = element ? ground(element.parentElement) : [255, 255, 255, 1];
        if (!element || !below) return below;
        const style = getComputedStyle(element);
        if (style.backgroundImage.includes('url(')) return null;
        // of a gradient the first colour
        const gradient = style.backgroundImage.match(/rgba?\([^)]*\)/);
        const plain = over(rgba(style.backgroundColor), below);
        return gradient ? over(rgba(gradient[0]), plain) : plain;
    });
    const pale = [];
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) {
        const element = node.parentElement;
        if (!/\S/.test(node.data) || !element.checkVisibility({opacityProperty: true, visibilityProperty: true}) || element.closest('.lora-trainer-primary, .lora-trainer-button[aria-pressed=true], select, option, :disabled, [aria-disabled=true], [aria-hidden=true]')) continue;
        const style = getComputedStyle(element), below = ground(element);
        if (!below) continue;
        const front = over(rgba(style.color), below);
        const [one, two] = [light(front), light(below)].sort((a, b) => b - a);
        const ratio = (one + 0.05) / (two + 0.05);
        const size = parseFloat(style.fontSize), large = size >= 24 || (size >= 18.66 && Number(style.fontWeight) >= 700);
        if (ratio < (large ? 3 : 4.5)) pale.push(`${ratio.toFixed(2)} ${node.data.trim().slice(0, 40)} (${element.className})`);
    }
    return [...new Set(pale)];
}"""

# one primary button a screen, in sight without scrolling and with nothing before it
UNSEEN = r"""root => {
    const shown = [...root.querySelectorAll('.lora-trainer-primary')].filter(button => button.checkVisibility() && !button.closest('dialog'));
    if (shown.length !== 1) return [`${shown.length} primary buttons: ${shown.map(button => button.textContent).join(', ')}`];
    const box = shown[0].getBoundingClientRect();
    const above = document.elementFromPoint(box.left + box.width / 2, box.top + box.height / 2);
    return box.top >= 0 && box.bottom <= innerHeight && box.left >= 0 && box.right <= innerWidth && above && shown[0].contains(above) ? [] : [`${shown[0].textContent} is out of sight`];
}"""

TOO_WIDE = r"""root => {
    const wide = document.documentElement.scrollWidth - document.documentElement.clientWidth;
    const culprits = [...root.querySelectorAll('*')].filter(element => element.checkVisibility() && element.getBoundingClientRect().right > document.documentElement.clientWidth + 1 && !scrolls(element));
    function scrolls(element) { for (let at = element.parentElement; at && at !== root; at = at.parentElement) if (['auto', 'scroll', 'hidden', 'clip'].includes(getComputedStyle(at).overflowX)) return true; return false; }
    return culprits.slice(0, 8).map(element => element.outerHTML.slice(0, 140)).concat(wide > 0 && culprits.length ? [`the page is ${wide} pixels too wide`] : []);
}"""

FOREIGN = r"""([root, known]) => {
    const foreign = [], names = new Set(known.map(name => name.toLowerCase()));
    const look = (text, where) => { for (const word of text.replace(/\S*[\/\\]\S*/g, ' ').match(/[A-Za-z]{3,}/g) || []) if (!names.has(word.toLowerCase())) foreign.push(`${word}: ${text.trim().slice(0, 80)} (${where})`); };
    const walker = document.createTreeWalker(root, NodeFilter.SHOW_TEXT);
    for (let node = walker.nextNode(); node; node = walker.nextNode()) if (!node.parentElement.closest('pre, code, script, style, [lang]:not(#lora_trainer_root)')) look(node.data, node.parentElement.className || node.parentElement.tagName);
    for (const element of root.querySelectorAll('[aria-label], [title], [placeholder]')) for (const name of ['aria-label', 'title', 'placeholder']) look(element.getAttribute(name) || '', name);
    return [...new Set(foreign)];
}"""

STILL = r"""async milliseconds => {
    const root = document.getElementById('lora_trainer_root');
    if (!window.asking) {
        const ask = window.fetch, asking = new Set();
        window.asking = asking;
        window.fetch = (...given) => {
            const answer = ask(...given);
            asking.add(answer);
            return answer.finally(() => asking.delete(answer));
        };
    }
    let changed = performance.now();
    const touch = () => { changed = performance.now(); };
    const changes = new MutationObserver(touch);
    changes.observe(root, {subtree: true, childList: true, attributes: true, characterData: true});
    const sizes = new ResizeObserver(touch);
    sizes.observe(root);
    // each answer and image is an entry once it is there
    const loads = new PerformanceObserver(touch);
    loads.observe({type: 'resource'});
    const moves = () => root.getAnimations({subtree: true}).some(one => one.playState === 'running' && one.effect.getComputedTiming().endTime < Infinity);
    const loading = () => [...root.querySelectorAll('img')].some(image => image.checkVisibility() && image.loading !== 'lazy' && !image.complete);
    const end = changed + 10000;
    while ((performance.now() - changed < milliseconds || window.asking.size || moves() || loading()) && performance.now() < end) await new Promise(requestAnimationFrame);
    changes.disconnect(); sizes.disconnect(); loads.disconnect();
}"""


def complaints(page: Any, *questions: str) -> list[str]:
    """The answers to some of the questions above, asked of our tab in one go."""
    asked = ", ".join(f"({question})" for question in questions)
    root = "document.getElementById('lora_trainer_root')"
    return list(page.evaluate(f"() => [{asked}].flatMap(ask => ask({root}))"))


def foreign_words(page: Any, known: Sequence[str]) -> list[str]:
    """Words in Latin letters that are none of these."""
    root = page.locator("#lora_trainer_root").element_handle()
    return list(page.evaluate(FOREIGN, [root, list(known)]))


def resize(page: Any, width: int, height: int = 900) -> None:
    """Another size of the window, drawn."""
    page.set_viewport_size({"width": width, "height": height})
    still(page, 50)


def still(page: Any, milliseconds: int) -> None:
    """Until our tab has not changed for that long, nothing in it is asked of the server or loaded,
    and nothing moves."""
    page.evaluate(STILL, milliseconds)
