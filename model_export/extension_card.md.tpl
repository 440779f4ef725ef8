# $name $version

**$intended_use**

$description

## The added label

$base_id with one label more; `backbone.onnx` is the same file (SHA-256 `$backbone_sha256`).

$label

$trained

$heads

| | |
|---|---|
| prompt | `$prompt` |
| text encoder | $encoder |
| source of its text features | $source |
| text embedding SHA-256 | `$embedding_sha256` |
| checkpoint SHA-256 | `$checkpoint_sha256` |
| largest difference of logits, engine to torch, of the largest | $errors |

## Evaluation

$evaluation

$training## Licence

$licence, see LICENSE.

---

What follows is the card of $base_id. $of_base

$base_card
