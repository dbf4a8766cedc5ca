"""``README.txt``: how to start what was exported, and what its outputs mean, for who runs Triton."""

from __future__ import annotations

from typing import Final

from guard.artifact import Profile
from guard.export.triton_config import Backend

__all__ = ["README_NAME", "readme_text"]

README_NAME: Final = "README.txt"

_STARTS: Final[dict[str, str]] = {
    "onnxruntime": """\
    docker run --rm --gpus all -v "$PWD:/models" -e NVIDIA_TF32_OVERRIDE=0 -p 8001:8001 \\
      nvcr.io/nvidia/tritonserver:24.10-py3 tritonserver --model-repository /models

(run where the folder {name}/ is; leave out --gpus without a GPU). TF32 would move scores by about 1e-3
from those that the boundary was calibrated with, so it is turned off.""",
    "python": """\
    tritonserver --model-repository .

(run where the folder {name}/ is). model.py runs the graph with the packages numpy and onnxruntime (or
onnxruntime-gpu), which the Python of Triton's python backend must have.""",
}

_TEXT: Final = """\
{name}: an image classifier and its check for backdoor triggers, in one ONNX graph. Written by
`guard export triton`; guard.json in each version's folder says what it was made from, and its policy.

Start
-----

{start}

Input and outputs
-----------------

{input:16}{input_type}, {input_shape}, preprocessed as the model was calibrated
{output:16}{output_type}, {classes} {kind}; NaN in rows that are rejected
{verdict:16}STRING, one a row
{score:16}FP32, one a row: higher is more suspicious; its unit is told below
{p_value:16}FP32, one a row: the share of calibration images at least as suspicious

    guard_verdict   means                                             its answer
    accept          checked, and not suspicious                       given
    reject          (enforce) suspicious, or it could not be checked  withheld: NaN
    flag            (flag) suspicious; (enforce) beyond the boundary  given
                    for flags alone, where a model has two
    unchecked       (flag) it could not be checked                    given

What cannot be checked (NaN, infinite values, values outside the calibrated range, a model that answers NaN)
has NaN for score and p-value. Use an answer only if its verdict is "accept".

What a score is, the detector says, which is in guard.json; all are over all {n} overlays:

    strip           minus the mean entropy of the answers, in bits
    fused           the highest of a few views, each of several statistics together, on a scale where 0 is the
                    median of clean images and 1 is what one in fifty exceeds; without a unit

Good to know
------------

- An image costs {passes} passes of the model, whatever it is: the graph is fixed, and always tries all
  overlays. The guard's own server stops sooner. With the detector strip its verdicts are the same. With
  fused it accepts images that look clean after a few overlays, some of which may be flagged or rejected
  here; the false-rejection rate that is certified is that of all overlays, so it holds here as well.
- model.onnx holds the overlays, and who knows them can look for inputs that pass: keep it as secret as a key.
  Folders have mode 0750 and files 0640; give Triton's user the group.
- The guard's log, metrics, audit log and quarantine are not here: record verdicts in the client or a gateway.
- Do not serve the bare model beside it: whoever can call that is not checked.
"""


def readme_text(name: str, profile: Profile, backend: Backend) -> str:
    """Return the text.

    Args:
        name: Name of the model in Triton.
        profile: Profile of the artifact.
        backend: What runs the graph in Triton.
    """
    source, sink = profile.input, profile.output
    batch = profile.fixed_batch or "batch"
    return _TEXT.format(
        name=name,
        start=_STARTS[backend].format(name=name),
        input=source.name,
        input_type=source.datatype,
        input_shape=f"({', '.join(map(str, (batch, *source.shape)))})",
        output=sink.name,
        output_type=sink.datatype,
        classes=sink.classes,
        kind=sink.kind,
        verdict="guard_verdict",
        score="guard_score",
        p_value="guard_p_value",
        n=profile.check.n_overlays,
        passes=profile.check.n_overlays + 1,
    )
