"""Every setting of a run: `schema` is the machinery, `training` and `captioning` have the
fields.
"""
