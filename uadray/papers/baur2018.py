"""Baur et al. 2018: deep autoencoding models for MS lesions in FLAIR."""

from uadray.config import experiment
from uadray.methods import NAMED
from uadray.papers.study import CohortNeed, Entry, Paper, Published, Study

MS = CohortNeed(role="ms", data="in-house, 49 patients with MS", modality="FLAIR", num_test=49)
TRAINING = "in-house, 83 healthy FLAIR scans, 20 axial slices of 256 x 256 each"

_TABLE_1 = (
    ("dAE", 0.1276, 0.1461, 0.3575, 0.0128),
    ("sAE1", 0.1973, 0.1906, 0.3227, 0.0121),
    ("sAE3", 0.5855, 0.1984, 0.6813, 0.0118),
    ("sAE-GAN", 0.5263, 0.1978, 0.6988, 0.0144),
    ("dVAE", 0.1661, 0.1779, 0.3229, 0.0108),
    ("sVAE", 0.5922, 0.1958, 0.6890, 0.0129),
    ("sVAE-GAN", 0.6050, 0.1927, 0.6906, 0.0154),
    ("AnoGAN", 0.3748, 0.2192, 0.4178, 19.8547),
)
"""Method, Dice_S mean and deviation, AUPRC, seconds a slice."""

BAUR_2018 = Paper(
    key="baur2018",
    citation=(
        "Baur, Wiestler, Albarqouni, Navab: Deep autoencoding models for unsupervised anomaly "
        "segmentation in brain MR images, 2018"
    ),
    studies=(
        Study(
            key="table-1",
            title="Dense and spatial autoencoders, with and without adversarial training",
            protocol="baur2018",
            training=TRAINING,
            cohorts=(MS,),
            entries=tuple(
                Entry(
                    label=name,
                    experiment=experiment(name) if name in NAMED else None,
                    role="ms",
                    published={
                        "dice_s_mean": Published(value=mean, deviation=deviation),
                        "auprc": Published(value=auprc),
                        "seconds_per_slice": Published(value=seconds),
                    },
                )
                for name, mean, deviation, auprc, seconds in _TABLE_1
            ),
        ),
        Study(
            key="figure-6",
            title="Histograms of the residuals of normal and of anomalous pixels",
            protocol="baur2018",
            training=TRAINING,
            cohorts=(MS,),
            entries=(Entry(label="sVAE-GAN", experiment=experiment("sVAE-GAN"), role="ms"),),
        ),
    ),
)
