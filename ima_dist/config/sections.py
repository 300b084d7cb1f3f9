"""The options of data and network, which are sections of ``schema.Config``."""

from __future__ import annotations

from functools import partial
from typing import Annotated, Any, Literal

from annotated_types import Ge, Gt
from pydantic import AfterValidator, Field, Strict, model_validator

from ima_dist.config.arguments import checked_arguments
from ima_dist.config.augmentations import KINDS
from ima_dist.config.checked import Checked
from ima_dist.config.errors import ConfigError
from ima_dist.config.forms import (
    absolute_if_file,
    adding_checksum,
    is_augmentation,
    is_channels,
    is_reference,
    is_source,
    is_window,
)
from ima_dist.config.sources import SOURCES

# An option that weights and margins cannot depend on, such as where to compute.
Aside = partial(Field, json_schema_extra={"alters_result": False})

Reference = Annotated[str, AfterValidator(is_reference)]
Source = Annotated[str, AfterValidator(is_source)]
Arguments = Annotated[dict[str, Any], AfterValidator(checked_arguments)]


class DataConfig(Checked):
    source: Source = Field(
        description=f"form of your data: {', '.join(SOURCES)}; or a function that loads them, as pkg.module:function"
    )
    dir: str | None = Aside(None, description="directory that holds the data files, or a prepared copy of them")
    download: bool = Aside(False, description="fetch missing files and check their checksums")
    subset: int | None = Field(
        None,
        ge=1,
        description="train on this many samples, as many of each class, or in proportion where classes are too small; "
        "test set in proportion",
    )
    noise: float = Field(0.06, ge=0, description="moons: standard deviation of the noise added to the points")
    # Runs from before this option have 5000 (presets.py has the sizes of new ones).
    val_size: int = Field(
        5000,
        ge=1,
        description="fashion_mnist, mnist, svhn, cifar10: how many of the published training images are held out for "
        "validation; of fewer images the same share (default: a tenth)",
    )
    size: int | None = Field(
        None, ge=1, description="own images: side in pixels to which they are resized (default: theirs, if all agree)"
    )
    channels: Annotated[int, AfterValidator(is_channels)] | None = Field(
        None, description="own images: 1 for grey, 3 for RGB (default: 1 if all are grey, else 3)"
    )
    resize: Literal["fit", "crop", "pad"] = Field(
        "fit",
        description="own images that are not square: squeezed to fit, cropped to the middle, or padded with black",
    )
    window: Annotated[tuple[float, ...], Strict(False), AfterValidator(is_window)] = Field(
        (),
        description="own data of more than 8 bits: LOW,HIGH, beyond which values are cut; noise levels are then in "
        "their units",
    )
    depth: int | None = Field(
        None, ge=1, description="own DICOM or NIfTI files: volumes of this many slices as samples (default: slices)"
    )
    groups: Annotated[str, AfterValidator(absolute_if_file)] | None = Field(
        None,
        description="what must not be split, such as patients: a CSV file of name,group; a column of a list; a regular "
        "expression on the samples' names, whose parenthesis is the group; or header",
    )
    groups_sha256: str | None = Field(
        None, description="SHA-256 that the file of groups must have (default: that of the file, which is stored)"
    )
    _sums_up = adding_checksum("groups")
    split: Annotated[tuple[Annotated[float, Ge(0)], ...], Strict(False)] = Field(
        (70.0, 15.0, 15.0),
        description="own data that have no parts: shares of training, validation and test samples, by group and class",
    )
    hide_names: bool = Aside(
        False, description="keep no names of files and groups with the run, which may identify persons, but numbers"
    )
    args: Arguments = Field({}, description="keyword argument KEY of your own function that loads the data")
    place: Literal["auto", "device", "host", "disk"] = Aside(
        "auto",
        description="where samples are while they are used; batches are copied from the host's memory, or read from "
        "the disk, ahead of their use; auto goes by what is free",
    )
    augment: Annotated[str, AfterValidator(is_augmentation)] | None = Field(
        None,
        description="random changes of the training images, such as crop:4,flip,rotate:10,brightness:0.1 "
        f"({', '.join(KINDS)}); none; or your own function of (x, keys), as pkg.module:function",
    )

    @model_validator(mode="after")
    def _fits_the_source(self) -> DataConfig:
        if len(self.split) != 3 or not (self.split[0] and self.split[2]):
            raise ConfigError(
                "--data.split needs three shares, of training, validation and test samples, such as 70,15,15; only "
                "that of the validation samples may be 0."
            )
        if self.depth is not None and self.source not in ("dicom", "nifti"):
            raise ConfigError(f"--data.depth is for --data.source dicom|nifti, not for {self.source}: leave it out.")
        given = [f"--data.{name}" for name in ("size", "channels", "window") if getattr(self, name)]
        given += ["--data.resize"] if self.resize != "fit" else []
        if given and self.source not in SOURCES:
            raise ConfigError(
                f"{given[0]} goes with --data.source {'|'.join(SOURCES)}, not with {self.source}: give a function of "
                "your own its arguments by --data.args.KEY."
            )
        return self


class ModelConfig(Checked):
    factory: Reference = Field(description="function that builds the network, as pkg.module:function")
    sync_batch_norm: bool = Field(
        False, description="batch norm over the global batch instead of each worker's share (GPUs only; slower)"
    )
    args: Arguments = Field({}, description="keyword argument KEY of your own function that builds the network")
    mean: Annotated[tuple[float, ...], Strict(False)] = Field(
        (), description="subtracted from the inputs inside the network: one value per channel, or one for all"
    )
    std: Annotated[tuple[Annotated[float, Gt(0)], ...], Strict(False)] = Field(
        (), description="by which the inputs are then divided; noise levels stay in units of the data"
    )
    weights: str | None = Aside(
        None, description="file of weights from which the training starts: safetensors, or tensors by torch.save"
    )
    weights_sha256: str | None = Field(
        None, description="SHA-256 that this file must have (default: that of the file, which is stored)"
    )
    weights_strict: bool = Field(
        True, description="refuse weights that the network lacks, or that it has and the file has not (default: true)"
    )
    _sums_up = adding_checksum("weights")
