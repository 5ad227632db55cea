"""Random calls of the library, each judged in float64: `.ci/fuzz`.

`draw` makes a `Plan`, a call in a few words, from a seed and a number; `inputs` makes its tensors, out of `values`,
`layouts` and `masks`; `running` runs it on a backend; `exact` computes the same in float64, with a bound of how far a
kernel may be from it; `judging` compares. `hostile` has calls that have to be refused. `workers` runs calls in
processes that may crash, `smaller` reduces a failing plan, and `command` is what `.ci/fuzz` starts.
"""
