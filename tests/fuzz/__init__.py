"""Random calls of the library, each checked against float64: `.ci/fuzz`.

`draw` makes a `Plan`, the description of a call, from a seed and a number. `inputs` makes its tensors with `values`,
`layouts` and `masks`. `running` runs it on a backend. `exact` computes the same in float64, with error bounds for a
kernel. `judging` compares the two. `hostile` has invalid calls, which must be rejected. `workers` runs calls in
processes that may crash, `smaller` simplifies a failing plan, and `command` is what `.ci/fuzz` starts.
"""
