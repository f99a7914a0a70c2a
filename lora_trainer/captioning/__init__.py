"""Captioners: images -> captions, in the worker process, each behind `captioner.Captioner`.

    source.find(settings, report)   -> the model's folder (or the host's file), downloaded if needed
    load.load(settings, source)     -> a Captioner, on its device
    captioner.caption(images)       -> one CaptionerOutput per image
    postprocess(output, settings)   -> the text to write: without excluded tags, with prefix, suffix
                                       and trigger word

The captioners are in `captioners`, one module each, importable without torch. Used by
tasks.caption.
"""
