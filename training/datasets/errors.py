"""What can be wrong with a dataset or one of its cases. A bad case ends in the report, a bad dataset ends the command.

DatasetError
    UnknownDataset      no dataset of that name, no such YAML file
    InvalidDescription  a dataset's YAML does not say what it must
    NoCases             the folder holds nothing in the dataset's layout
    AmbiguousLabelOrder the label volumes fit none of the dataset's label orders, or several
    CaseError           one case; the others go on
        UnreadableFile      not the NIfTI, DICOM or PNG that it should be
        MissingLabel        an image without labels
        SeveralFiles        more than one file or series where one is needed
        NotAVolume          not three axes, too few slices, or an impossible grid
        UnevenSlices        slices that are missing, doubled or tilted
        NotHounsfield       intensities that cannot be HU
        GridMismatch        labels on another grid than the image
        UnknownLabelValue   a value in the label map that the description does not name
"""


class DatasetError(ValueError):
    """A dataset cannot be used as it is."""


class UnknownDataset(DatasetError):
    """No dataset of that name, and no such YAML file."""


class InvalidDescription(DatasetError):
    """A dataset's YAML does not say what it must."""


class NoCases(DatasetError):
    """The folder holds nothing in the dataset's layout."""


class AmbiguousLabelOrder(DatasetError):
    """The label volumes fit none of the dataset's label orders, or several."""


class CaseError(DatasetError):
    """One case cannot be used; the others can."""


class UnreadableFile(CaseError):
    """Not the NIfTI, DICOM or PNG that it should be."""


class MissingLabel(CaseError):
    """An image without labels."""


class SeveralFiles(CaseError):
    """More than one file or series where one is needed."""


class NotAVolume(CaseError):
    """Not three axes, too few slices, or an impossible grid."""


class UnevenSlices(CaseError):
    """Slices are missing, doubled or tilted."""


class NotHounsfield(CaseError):
    """Intensities that cannot be HU."""


class GridMismatch(CaseError):
    """Labels on another grid than the image."""


class UnknownLabelValue(CaseError):
    """A value in the label map that the description does not name."""
