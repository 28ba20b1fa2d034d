"""One axial slice of a few test subjects, the same for every run, for the report's montage."""

from typing import Any

import numpy as np
import torch

from uadray import files, npz
from uadray.evaluation.protocols import EvaluateConfig
from uadray.metrics.components import drop_components
from uadray.metrics.postprocess import dequantise
from uadray.runs.detector import load_detector
from uadray.runs.folder import Run
from uadray.runs.reading import place
from uadray.runs.scores import ScoreStore
from uadray.store import Cohort

LESION_QUANTILES = (0.9, 0.5, 0.1)
"""Test subjects that are shown: these quantiles of the lesions' volumes."""


def write_cases(
    run: Run, store: ScoreStore, cohort: Cohort, config: EvaluateConfig, level: int
) -> None:
    """Keep the slice with most lesion of each case in `evaluation/<cohort>-cases.npz`.

    Args:
        run: Whose scores are shown.
        store: Its kept scores.
        cohort: The subjects.
        config: Slices and component filter.
        level: The frozen threshold.
    """
    table = cohort.subjects
    test = table[table["split"] == "test"].sort_values(["lesion_ml", "id"]).reset_index(drop=True)
    chosen = sorted({round(q * (len(test) - 1)) for q in LESION_QUANTILES}, reverse=True)
    start, stop = config.fixed.slices or (0, cohort.shape[0])
    detector = load_detector(run)
    cases: dict[str, list[Any]] = {}
    for rank in chosen:
        row = int(test.loc[rank, "row"])
        image = cohort.read("image", row, row + 1).astype(np.float32)
        brain, lesion = (cohort.read(n, row, row + 1)[0] for n in ("brain", "lesion"))
        z = start + int(lesion[start:stop].sum((1, 2)).argmax())
        levels = store.checked_levels(row, str(test.loc[rank, "id"]))
        kept = drop_components(levels, config.components)
        case = {
            "ids": str(test.loc[rank, "id"]),
            "slice": z,
            "input": image[0, z],
            "scores": dequantise(levels[z - start], store.score_range).astype(np.float32),
            "brain": brain[z],
            "lesion": lesion[z],
            "prediction": kept[z - start] >= level,
        }
        if detector.has_reconstruction:
            # Methods on slices need the one that is shown alone, and some of them take long.
            plane = slice(z, z + 1) if getattr(detector, "ndim", 3) == 2 else slice(None)
            with torch.inference_mode():
                output = detector.reconstruct_within(
                    torch.from_numpy(image[:, plane])[:, None],
                    torch.from_numpy(brain[plane].astype(bool))[None],
                )
            case["reconstruction"] = output[0, 0, z - (plane.start or 0)].numpy() * brain[z]
        for key, value in case.items():
            cases.setdefault(key, []).append(value)
    content = npz.pack(**{key: np.array(values) for key, values in cases.items()})
    files.write_bytes(place(run.url, cohort.name, "cases"), content)
