"""Captioners: images in, captions out. In the worker's process only; one file each, behind
`captioner.Captioner`.

    source.find(settings, report)   -> the folder (or the host's file) with the model: on this disk
                                    already, or fetched from the hub
    load.load(settings, source)     -> a Captioner, on its device
    captioner.caption(images)       -> one CaptionerOutput an image
    postprocess(output, settings)   -> its text as it is written: excluded tags gone, prefix,
                                    suffix and trigger word in place

Which captioners there are is in `captioners`, one module each, which needs no torch to say so.
Called by tasks.caption.
"""
