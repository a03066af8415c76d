"""The same graph on Kubeflow Pipelines v2: compiled, run step by step, submitted and scheduled.

compile.py     safelight compile: the configuration to pipeline.yaml
checks.py      what can't run there is refused before anything is written
spec.py        the graph as a KFP pipeline specification
platform.py    what Kubernetes must know: volumes, secrets, nodes, time-outs
entrypoint.py  the command of every step's container
prepare.py     the first step: looks at the data, resolves the run, gives each node its properties
window.py      the parameter `spans`: a window, decided on before
spans.py       what stands behind the steps that join its spans
node.py        a step that runs one node's TFX executor
artifacts.py   KFP's runtime artifacts as TFX's, and back
record.py      the run's record on the workdir's volume
final.py       the exit task: result and report, whatever happened
api.py         the client of a Kubeflow Pipelines server
submit.py      safelight submit
schedule.py    safelight schedule
"""
