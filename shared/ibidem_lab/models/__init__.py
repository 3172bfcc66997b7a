"""The models that the cache ships: a published text encoder, and a verifier of pairs of questions.

`groups` and `pairs` read the data, `network` and `training` hold what is trained and how, `teacher`
and `verifier` are the two trainings, `export` writes ONNX, `measure` prints the table of the
model card.
"""
