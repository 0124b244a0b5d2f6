"""The directory of vllmrt/tiny: the files beside this one are the model."""
