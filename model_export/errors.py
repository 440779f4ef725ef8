"""Why no bundle came out, as a tree.

    ExportError
    ├── CheckpointRefused   weights that are not finite, labels that do not fit the head, a foreign text embedding
    │   ├── CheckpointUnreadable   no file, not one that torch wrote, or a damaged one
    │   ├── CheckpointUnsafe       more than tensors and plain values in it: loading could run code
    │   ├── NetworkUnknown         the weights of a network that is not known here
    │   ├── KeysMismatch           keys that are missing, left over or of another shape; names them
    │   └── BackboneDiffers        its backbone is not that of the bundle that a label is added to
    ├── LabelRefused        a label that cannot be described, or that the bundle has or cannot hold
    ├── EmbeddingRefused    text features that give no row for the checkpoint's controller
    ├── ScanRefused         a CT to measure on that cannot be read, or shows nothing
    ├── ParityError         an engine does not reproduce the torch model on the exported graph, in float32
    ├── ManifestInvalid     the manifest does not follow bundle.schema.json
    ├── BundleExists        a bundle of that name and version is there already
    └── BundleDamaged       a bundle that was to be verified lacks a file, or a file differs from its manifest

The message names the thing, the value and the remedy. Whatever is raised, nothing is left in the output folder.
"""


class ExportError(Exception):
    """No bundle was written, or a bundle did not pass verification."""


class CheckpointRefused(ExportError):
    """The checkpoint cannot become a bundle."""


class CheckpointUnreadable(CheckpointRefused):
    """The file is missing, damaged, or not one that torch wrote."""


class CheckpointUnsafe(CheckpointRefused):
    """Loading the file could run code."""


class NetworkUnknown(CheckpointRefused):
    """The file holds no weights, or those of another network."""


class KeysMismatch(CheckpointRefused):
    """The weights are nearly those of a known network: some are missing, left over or of another shape."""


class BackboneDiffers(CheckpointRefused):
    """The checkpoint's backbone does not give what the bundle's does."""


class LabelRefused(ExportError):
    """The new label cannot be added to the bundle."""


class EmbeddingRefused(ExportError):
    """The text features give no row that the checkpoint's controller could read."""


class ScanRefused(ExportError):
    """The scan to measure on cannot be read."""


class ParityError(ExportError):
    """The exported graph and the torch model disagree by more than the tolerance."""


class ManifestInvalid(ExportError):
    """The manifest does not follow the schema."""


class BundleExists(ExportError):
    """The target folder exists and `force` was not given."""


class BundleDamaged(ExportError):
    """A file of the bundle is missing, unreadable or altered."""
