"""Every setting of a run, once: `schema` is the machinery, `training` and `captioning` hold the
fields.
"""
