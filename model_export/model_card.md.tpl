# $name $version

**$intended_use**

$description

## Data

$trained_on

$data_note

## Model

| | |
|---|---|
| method | CLIP-Driven Universal Model (Liu et al., ICCV 2023, arXiv 2301.00785), an independent implementation |
| backbone | `$architecture`, $backbone_parameters parameters, voxel features at stride $feature_stride |
| head | text-driven: 153 generated numbers per label; the text branch is folded into `head.safetensors` |
| labels | $label_count |
| input | CT in HU, RAS orientation, $spacing mm; $intensity_range HU mapped to $output_range |
| window | $roi_size voxels, overlap $overlap, Gaussian blending |
| short scans | $short_scans |
| text encoder | $text_encoder |
| prompt | `$prompt_template` |
| source of the text features | $text_source |
| text embedding SHA-256 | `$text_sha256` |
| text encoder's weights SHA-256 | $text_weights |

## Labels

$labels

## Training

$training

## Evaluation

$evaluation

## Precisions

How far each precision is from PyTorch in float32. The error is the largest difference of logits, relative to the largest
logit, over windows of noise, air, a cartoon trunk and $windows. Dice is that of the masks on the latter, of the
label that agrees least. The time is that of the backbone on the machine of the export. fp32 is offered with an error of
at most 1e-4, the others with a Dice of at least 0.99 for every label.

$parity

## Limits

$limits
- The text encoder is not part of the bundle: a label cannot be asked for by naming it. `viscera-export add-label` can
  append one.
- Masks overlap where anatomy does: a lesion belongs to its host organ too.
$thresholds

## Licence

$licence, see LICENSE.
