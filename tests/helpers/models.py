"""Tiny random models of every family and head, and tiny checkpoints that a whole pipeline can run on."""

import copy
from dataclasses import replace
from pathlib import Path

import timm
import torch
import transformers
from timm.models import save_for_hf
from transformers import AutoConfig

from optin_cli.architectures.registry import find_architecture, find_head, known_heads
from optin_cli.data.batch import Batch
from optin_cli.model.forward import call_model
from optin_cli.model.head_dims import head_dims_of
from optin_cli.model.resolve import find_structure

torch.set_num_threads(1)  # models this small run up to ten times slower when threads must share a busy machine

WORDS = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", *"abcdefghijklmnopqrst", "good", "bad", "film", "##s"]
SMALL = {
    "vocab_size": 99,
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "max_position_embeddings": 64,
}
DISTIL = {"vocab_size": 99, "dim": 32, "n_layers": 3, "n_heads": 4, "hidden_dim": 40}
DISENTANGLED = {"relative_attention": True, "pos_att_type": ["c2p", "p2c"], "max_relative_positions": 16}
GROUPED = {"num_key_value_heads": 4, "num_attention_heads": 8, "pad_token_id": 0}
MODERN = {"pad_token_id": 0, "global_attn_every_n_layers": 2, "local_attention": 6}
SHARED = {"position_buckets": 8, "share_att_key": True, "norm_rel_ebd": "layer_norm", "conv_kernel_size": 3}

FAMILIES = {
    "bert": ("bert", SMALL),
    "roberta": ("roberta", SMALL | {"pad_token_id": 1}),
    "xlm-roberta": ("xlm-roberta", SMALL | {"pad_token_id": 1}),
    "electra": ("electra", SMALL | {"embedding_size": 16}),
    "distilbert": ("distilbert", DISTIL | {"max_position_embeddings": 64}),
    "mpnet": ("mpnet", SMALL),
    "albert": ("albert", SMALL | {"embedding_size": 16}),
    "albert-2-groups": ("albert", SMALL | {"embedding_size": 16, "num_hidden_groups": 2}),
    "deberta-v2": ("deberta-v2", SMALL | DISENTANGLED),
    "deberta-v2-shared": ("deberta-v2", SMALL | DISENTANGLED | SHARED),
    "modernbert": ("modernbert", SMALL | MODERN),
}
HEADS = {
    "classes": ("AutoModelForSequenceClassification", {"num_labels": 3}),
    "regression": ("AutoModelForSequenceClassification", {"num_labels": 1}),
    "labels": (
        "AutoModelForSequenceClassification",
        {"num_labels": 3, "problem_type": "multi_label_classification"},
    ),
    "tokens": ("AutoModelForTokenClassification", {"num_labels": 3}),
    "answers": ("AutoModelForQuestionAnswering", {"num_labels": 2}),
    "masked": ("AutoModelForMaskedLM", {}),
    "base": ("AutoModel", {}),
}
OTHER_HEADS = {
    "pretraining": ("AutoModelForPreTraining", {}),
    "sentences": ("AutoModelForNextSentencePrediction", {}),
    "numbers": ("AutoModelForSequenceClassification", {"num_labels": 3, "problem_type": "regression"}),
    "choices": ("AutoModelForMultipleChoice", {}),
}
"""Heads that few families have, or that differ from others in little."""
SPECIAL = {"bos_token_id": 1, "eos_token_id": 2, "pad_token_id": 0}
ALONE = {"num_attention_heads": 4} | SPECIAL
SLIDING = GROUPED | {"sliding_window": 6}
WIDE_HEADS = SLIDING | {"head_dim": 8, "query_pre_attn_scalar": 8}
EXPERTS = {"num_experts": 6, "num_experts_per_tok": 2, "moe_intermediate_size": 32, "mlp_only_layers": [1]}
DECODERS = {
    "llama": ("llama", SMALL | GROUPED),
    "qwen2": ("qwen2", SMALL | GROUPED),
    "qwen3": ("qwen3", SMALL | GROUPED | {"head_dim": 8}),
    "mistral": ("mistral", SMALL | SLIDING),
    "gemma2": ("gemma2", SMALL | WIDE_HEADS),
    "gemma3": ("gemma3_text", SMALL | WIDE_HEADS),
    "phi3": ("phi3", SMALL | GROUPED | SPECIAL),
    "olmo2": ("olmo2", SMALL | GROUPED | {"rms_norm_eps": 1e-9}),
    "qwen3-moe": ("qwen3_moe", SMALL | GROUPED | {"head_dim": 8} | EXPERTS),
    "mixtral": ("mixtral", SMALL | GROUPED | {"intermediate_size": 32, "num_local_experts": 6}),
    "opt": ("opt", SMALL | ALONE | {"ffn_dim": 40}),
    "opt-post-norm": ("opt", SMALL | ALONE | {"ffn_dim": 40, "do_layer_norm_before": False}),
    "gpt2": ("gpt2", SMALL | ALONE | {"n_inner": 40}),
    "gpt-neox": ("gpt_neox", SMALL | ALONE),
    "gpt-neox-serial": ("gpt_neox", SMALL | ALONE | {"use_parallel_residual": False}),
}
NEXT = {"next": ("AutoModelForCausalLM", {})}
"""The head of decoders, which continue a text."""
SIGHT = {
    "hidden_size": 32,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "intermediate_size": 40,
    "image_size": 24,
    "patch_size": 8,
    "num_labels": 3,
}
TIMM_VIT = {
    "img_size": 24,
    "patch_size": 8,
    "embed_dim": 32,
    "depth": 3,
    "num_heads": 4,
    "mlp_ratio": 1.25,
    "num_classes": 3,
}
TOGETHER = {"use_relative_position_bias": True, "use_shared_relative_position_bias": True}

WINDOWS = {"embed_dim": 16, "depths": [2, 2], "num_heads": [4, 4], "window_size": 3, "image_size": 24, "patch_size": 4}
TIMM_WINDOWS = {"img_size": 24, "patch_size": 4, "embed_dim": 16, "depths": (2, 2), "num_heads": (4, 4)}
SMALL_STAGES = {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1], "num_labels": 3}
STAGES = {"out_features": ["stage1", "stage2", "stage3", "stage4"]}
SWIN_STAGES = WINDOWS | STAGES | {"depths": [2, 1, 1, 1], "num_heads": [4, 4, 4, 4], "image_size": 32}
CONVNEXT_STAGES = STAGES | {"hidden_sizes": [8, 12, 16, 24], "depths": [1, 1, 2, 1]}
QUERIES = {"num_queries": 6, "decoder_layers": 4, "num_attention_heads": 4}
MASKED = QUERIES | {"feature_size": 64, "mask_feature_size": 16, "hidden_dim": 32, "dim_feedforward": 40}
DETR = {"d_model": 32, "decoder_layers": 2, "decoder_attention_heads": 4, "decoder_ffn_dim": 40, "num_queries": 6}
FPN = {"fpn_feature_size": 64, "mask_feature_size": 64}
REDUCED = {"hidden_sizes": [8, 16, 16, 24], "num_attention_heads": [4, 2, 2, 3], "depths": [2, 1, 1, 1]}
UPER = {"head": "UperNetForSemanticSegmentation", "hidden_size": 16, "auxiliary_in_channels": None, "num_labels": 3}
MOBILE = {"hidden_sizes": [16, 24, 32], "neck_hidden_sizes": [8, 8, 12, 12, 16, 16, 40], "image_size": 24}

IMAGES = {
    "swin": ("transformers", "swin", WINDOWS | {"num_labels": 3}),
    "swinv2": ("transformers", "swinv2", WINDOWS | {"num_labels": 3}),
    "convnext": ("transformers", "convnext", SMALL_STAGES),
    "mobilevit": ("transformers", "mobilevit", MOBILE | {"num_labels": 3}),
    "mobilenet_v2": ("transformers", "mobilenet_v2", {"depth_multiplier": 0.25, "image_size": 24, "num_labels": 3}),
    "mobilenet_v2-expanded": (
        "transformers",
        "mobilenet_v2",
        {"depth_multiplier": 0.25, "image_size": 24, "num_labels": 3, "first_layer_is_expansion": False},
    ),
    "resnet": ("transformers", "resnet", SMALL_STAGES | {"embedding_size": 8, "layer_type": "basic"}),
    "resnet-bottleneck": ("transformers", "resnet", SMALL_STAGES | {"hidden_sizes": [16, 16, 24, 32]}),
    "mask2former": (
        "transformers",
        "mask2former",
        MASKED
        | {"backbone_config": ("swin", SWIN_STAGES), "encoder_layers": 2, "encoder_feedforward_dim": 40}
        | {"num_labels": 3, "head": "Mask2FormerForUniversalSegmentation"},
    ),
    "maskformer": (
        "transformers",
        "maskformer",
        FPN
        | {"backbone_config": ("swin", SWIN_STAGES), "decoder_config": ("detr", DETR)}
        | {"num_labels": 3, "head": "MaskFormerForInstanceSegmentation"},
    ),
    "segformer": (
        "transformers",
        "segformer",
        REDUCED | {"decoder_hidden_size": 16, "num_labels": 3, "head": "SegformerForSemanticSegmentation"},
    ),
    "upernet-swin": ("transformers", "upernet", UPER | {"backbone_config": ("swin", SWIN_STAGES)}),
    "upernet-convnext": ("transformers", "upernet", UPER | {"backbone_config": ("convnext", CONVNEXT_STAGES)}),
    "timm-swin": ("timm", "swin_tiny_patch4_window7_224", TIMM_WINDOWS | {"window_size": 4, "num_classes": 3}),
    "timm-convnext": ("timm", "test_convnext2", {"num_classes": 3}),
    "timm-mobilevit": ("timm", "mobilevit_xxs", {"num_classes": 3}),
    "timm-resnet": ("timm", "test_resnet", {"num_classes": 3}),
    "timm-resnext": (
        "timm",
        "resnext50_32x4d",
        {"layers": [1, 1, 1, 1], "channels": [16, 16, 16, 24], "cardinality": 4, "base_width": 16, "num_classes": 3},
    ),
    "timm-mobilenetv2": ("timm", "mobilenetv2_035", {"num_classes": 3}),
    "timm-efficientnet": ("timm", "test_efficientnet", {"num_classes": 3}),
    "timm-vgg": ("timm", "vgg11", {"num_classes": 3, "mlp_ratio": 0.005}),
    "timm-vgg-bn": ("timm", "vgg11_bn", {"num_classes": 3, "mlp_ratio": 0.005}),
    "vit": ("transformers", "vit", SIGHT),
    "deit": ("transformers", "deit", SIGHT | {"head": "DeiTForImageClassification"}),
    "deit-distilled": ("transformers", "deit", SIGHT | {"head": "DeiTForImageClassificationWithTeacher"}),
    "beit": ("transformers", "beit", SIGHT | {"use_relative_position_bias": True}),
    "beit-shared": ("transformers", "beit", SIGHT | TOGETHER),
    "dinov2": ("transformers", "dinov2", SIGHT | {"mlp_ratio": 2}),
    "dinov2-swiglu": ("transformers", "dinov2", SIGHT | {"mlp_ratio": 2, "use_swiglu_ffn": True}),
    "dinov2-registers": ("transformers", "dinov2_with_registers", SIGHT | {"mlp_ratio": 2}),
    "timm-vit": ("timm", "vit_tiny_patch16_224", TIMM_VIT),
    "timm-deit": ("timm", "deit_tiny_distilled_patch16_224", TIMM_VIT),
    "timm-dinov2": ("timm", "vit_small_patch14_reg4_dinov2", TIMM_VIT),
    "timm-dinov2-swiglu": ("timm", "vit_giant_patch14_dinov2", TIMM_VIT | {"mlp_ratio": 2.5}),
    "timm-beit": ("timm", "beit_base_patch16_224", TIMM_VIT),
    "timm-beit-shared": ("timm", "beit_base_patch16_224", TIMM_VIT | {"use_shared_rel_pos_bias": True}),
}
"""Families of image classifiers and segmenters: library, model type or timm's name, and what makes it tiny."""
SEEING = (
    "AutoModelForImageClassification",
    "AutoModelForUniversalSegmentation",
    "AutoModelForSemanticSegmentation",
)
"""Their auto classes in transformers."""
SIDE = 24
"""Height and width of their images."""
HALVED = 32
"""The same for models that halve it five times."""


def tiny_config(family, **overrides):
    model_type, values = (FAMILIES | DECODERS)[family]
    return AutoConfig.for_model(model_type, **(values | overrides))


def build(family, head="classes", *, seed=0, dtype=torch.float32, **overrides):
    """A frozen random model in evaluation mode, with weights large enough for errors to show."""
    torch.manual_seed(seed)
    if family in IMAGES:
        model = build_stock(family, **overrides)
    else:
        auto_class, values = (HEADS | OTHER_HEADS | NEXT)[head]
        model = getattr(transformers, auto_class).from_config(tiny_config(family, **(values | overrides)))
    for name, parameter in model.eval().requires_grad_(False).named_parameters():
        norm = "norm" in name.lower() and name.endswith("weight")
        parameter.copy_(torch.randn(parameter.shape) * 0.2 + float(norm))
    for module in model.modules():
        if isinstance(module, torch.nn.Conv2d):
            module.weight.normal_(0, (2 / module.weight[0].numel()) ** 0.5)  # or little of the image gets through
        if isinstance(module, torch.nn.BatchNorm2d):
            module.weight.normal_(1, 0.2)
            module.running_mean.normal_(0, 0.1)
            module.running_var.uniform_(0.5, 2.0)
    return model.to(dtype)


def build_stock(family, **overrides):
    library, kind, values = IMAGES[family]
    if library == "timm":
        return timm.create_model(kind, **(values | overrides))
    values = {
        k: AutoConfig.for_model(v[0], **v[1]) if k.endswith("_config") else v for k, v in values.items()
    } | overrides
    head = getattr(transformers, values.pop("head", "AutoModelForImageClassification"))
    make = head.from_config if hasattr(head, "from_config") else head
    return make(AutoConfig.for_model(kind, **values))


def is_timm(model):
    return not isinstance(model, transformers.PreTrainedModel)


def root_of(model):
    return "" if is_timm(model) else next(n for n, module in model.named_modules() if module is model.base_model)


def sight_of(model):
    """The auto class of a model of transformers that takes images; a pruned one has the name of the library's class."""
    for auto_class in SEEING:
        mapping = getattr(transformers, auto_class)._model_mapping
        found = mapping.get(type(model.config), ())
        if type(model).__name__ in {kind.__name__ for kind in (found if isinstance(found, tuple) else (found,))}:
            return auto_class
    return SEEING[0]


def structure_of(model, head="classes", architecture=None):
    if is_timm(model):
        description = architecture or find_architecture(type(model).__name__, "timm")
        return find_structure(model, description, known_heads()["timm.create_model"])
    if model.main_input_name == "pixel_values":
        description = architecture or find_architecture(model.config.model_type)
        return find_structure(model, description, known_heads()[sight_of(model)], root=root_of(model))
    config, auto_class = model.config, (HEADS | OTHER_HEADS | NEXT)[head][0]
    kind = "regression" if head == "regression" else config.problem_type
    description = architecture or find_architecture(config.model_type)
    rule = find_head(auto_class, type(model).__name__)
    return find_structure(model, description, rule, root=root_of(model), problem_type=kind)


def make_inputs(rows=2, tokens=10, *, padding=3, seed=0, left=False):
    """Token ids whose last row ends (or starts, on the left) in padding."""
    ids = torch.randint(5, 90, (rows, tokens), generator=torch.Generator().manual_seed(seed))
    mask = torch.ones_like(ids)
    if padding:
        place = slice(None, padding) if left else slice(tokens - padding, None)
        mask[-1, place], ids[-1, place] = 0, 0
    return {"input_ids": ids, "attention_mask": mask}


def side_of(model):
    halving = type(model).__name__ in ("VGG", "ConvNeXt", "ConvNextForImageClassification")
    return HALVED if halving or (not is_timm(model) and "Segmentation" in sight_of(model)) else SIDE


def make_pixels(model, rows=2, *, seed=0):
    """Random images of the tiny models' size, by the name of the model's input."""
    side = side_of(model)
    pixels = torch.randn(rows, 3, side, side, generator=torch.Generator().manual_seed(seed))
    return {"x" if is_timm(model) else model.main_input_name: pixels}


def make_batch(rows=2, tokens=10, *, labels=None, **options):
    inputs = make_inputs(rows, tokens, **options)
    return Batch(inputs, labels, tuple(f"sample {row}" for row in range(rows)))


def batch_of(rows=12, seed=0):
    """Texts whose keys tell batches of different seeds apart."""
    batch = make_batch(rows, seed=seed)
    return replace(batch, keys=tuple(f"{seed}.{key}" for key in batch.keys))


def logits(model, inputs=None):
    """The first output, for the fixed inputs of tiny models unless others are given."""
    if inputs is None:
        takes_text = getattr(model, "main_input_name", None) == "input_ids"
        inputs = make_inputs() if takes_text else make_pixels(model)
    with torch.no_grad():
        return next(iter(call_model(model, inputs).values()))


def pick(batch, rows):
    """Some rows of a batch, without the padding that none of them needs."""
    longest = int(batch.token_mask[rows].sum(dim=1).max())
    inputs = {name: tensor[rows, :longest] for name, tensor in batch.inputs.items()}
    labels = None if batch.labels is None else batch.labels[rows]
    return Batch(inputs, labels, tuple(batch.keys[row] for row in rows))


def random_kept(structure, seed=0, share=0.5):
    """Random units of every group, ascending."""
    generator = torch.Generator().manual_seed(seed)
    kept = {}
    for group in structure.groups:
        order = torch.randperm(group.units, generator=generator)
        kept[group.name] = sorted(order[: max(int(group.units * share), group.least)].tolist())
    return kept


def random_dims(structure, seed=0, share=0.5):
    """Random query-key dimensions of every block, ascending; none where the description does not name the layers."""
    generator = torch.Generator().manual_seed(seed)
    kind = head_dims_of(structure.kinds)
    units = {} if kind is None else kind.units
    return {
        name: sorted(torch.randperm(dims, generator=generator)[: max(int(dims * share), 1)].tolist())
        for name, dims in units.items()
    }


def tiny_tokenizer(**options):
    from tokenizers import Tokenizer, models, pre_tokenizers, processors
    from transformers import PreTrainedTokenizerFast

    inner = Tokenizer(models.WordPiece({word: i for i, word in enumerate(WORDS)}, unk_token="[UNK]"))
    inner.pre_tokenizer = pre_tokenizers.Whitespace()
    inner.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]", pair="[CLS] $A [SEP] $B [SEP]", special_tokens=[("[CLS]", 2), ("[SEP]", 3)]
    )
    names = ("pad", "unk", "cls", "sep", "mask")
    special = {f"{name}_token": f"[{name.upper()}]" for name in names}
    defaults = {"model_max_length": 48, "model_input_names": ["input_ids", "attention_mask"]}
    return PreTrainedTokenizerFast(tokenizer_object=inner, **(special | defaults | options))


def save_checkpoint(folder, family="bert", head="classes", *, dtype=torch.float32, **overrides):
    """Write a model with its tokenizer as a Hugging Face folder; returns the folder."""
    folder = Path(folder)
    build(family, head, dtype=dtype, **overrides).save_pretrained(folder)
    tiny_tokenizer().save_pretrained(folder)
    return folder


def save_images(folder, family, *, dtype=torch.float32, **overrides):
    """Write an image classifier as its library does; returns the folder."""
    folder = Path(folder)
    model = build(family, dtype=dtype, **overrides)
    side = side_of(model)
    if is_timm(model):
        model.pretrained_cfg = dict(model.pretrained_cfg, input_size=(3, side, side))
        arguments = IMAGES[family][2] | overrides
        config = {"model_args": arguments, "pretrained_cfg": {"crop_pct": 1.0}}
        save_for_hf(model, folder, model_config=config, safe_serialization=True)
        return folder
    model.save_pretrained(folder)
    size = {"height": side, "width": side}
    transformers.ViTImageProcessor(size=size).save_pretrained(folder)
    return folder


def clone(model):
    return copy.deepcopy(model)
