"""As-ViT's closed form, and its layers as they stand in a built model."""

from __future__ import annotations

from types import SimpleNamespace

from keras_vmoe import layers, models
from keras_vmoe.analysis import parts
from keras_vmoe.analysis.layer_rows import (
    LayerCall,
    count_params,
    known_shape,
    layer_profile,
    unknown_shape,
)
from keras_vmoe.analysis.model_rows import ROUTER_CLASSES, register_model, sparse_mlp
from keras_vmoe.analysis.routing_costs import Counting
from keras_vmoe.analysis.rows import LayerProfile
from keras_vmoe.models.as_vit_graph import (
    Block,
    blocks,
    check_arguments,
    pretrained_shape,
    window_sizes,
)
from keras_vmoe.models.genotype import STRIDES, Genotype
from keras_vmoe.models.vit import image_shape, require_sizes
from keras_vmoe.models.vmoe import images_per_group
from keras_vmoe.ops.maps import window_on

Grid = tuple[int, int]


@register_model(models.AsViT)
def _as_vit(a: SimpleNamespace, counting: Counting) -> list[LayerProfile]:
    return as_vit_rows(a, counting)


def as_vit_rows(
    a: SimpleNamespace, counting: Counting, stride: int = STRIDES[0]
) -> list[LayerProfile]:
    """The rows of an As-ViT whose first tokens are `stride` pixels apart.

    Args:
        a: the arguments of the class.
        counting: how capacity is counted.
        stride: 4, or a coarser one of progressive re-tokenization.
    """
    genotype = check_arguments(vars(a))
    has_norms = a.norm == "layer"
    image = image_shape(a.image_size)
    grids = genotype.grids(image, stride)
    rows = _embedding(a, genotype, grids[0])
    for block in blocks(genotype):
        stage, grid = block.stage, grids[block.stage]
        if stage and block.index == sum(genotype.depths[:stage]):
            rows.append(
                parts.patch_merging(
                    f"merging_{stage}",
                    grid,
                    genotype.stages[stage].kernel_size,
                    genotype.widths[stage - 1],
                    genotype.widths[stage],
                    a.merge_norm if has_norms else "none",
                )
            )
        rows.append(_block(a, counting, genotype, block, grid, stride))
    last = genotype.widths[-1]
    if has_norms:
        rows.append(parts.layer_norm("encoder_norm", (*grids[-1], last)))
    return rows + _head(a, last)


def _embedding(a: SimpleNamespace, genotype: Genotype, grid: Grid) -> list[LayerProfile]:
    taps, width = genotype.stages[0].kernel_size ** 2, genotype.widths[0]
    rows = [parts.dense("embedding", grid, taps * a.channels, width)]
    if a.norm == "layer":
        rows.append(parts.layer_norm("embedding_norm", (*grid, width)))
    if a.pos_emb:
        down, across = genotype.grids(pretrained_shape(vars(a)))[0]
        rows.append(LayerProfile("position_embedding", (*grid, width), down * across * width))
    return rows


def _block(
    a: SimpleNamespace,
    counting: Counting,
    genotype: Genotype,
    block: Block,
    grid: Grid,
    stride: int,
) -> LayerProfile:
    genes, width = genotype.stages[block.stage], genotype.widths[block.stage]
    size = None
    if a.windows == "size":
        size = window_sizes(genotype, pretrained_shape(vars(a)))[block.stage]
    window = window_on(grid, genes.splits, size, coarsening=stride // STRIDES[0])
    heads = genotype.num_heads[block.stage]
    own = SimpleNamespace(
        **{
            **vars(a),
            "num_layers": sum(genotype.depths),
            "width": width,
            "mlp_dim": genes.mlp_ratio * width,
        }
    )
    mlp = sparse_mlp(own, counting, ROUTER_CLASSES[a.router], images_per_group(vars(a)))
    return parts.window_block(
        block.name,
        grid,
        width,
        parts.windowed_attention("attention", grid, width, heads, window),
        mlp(block.index, grid[0] * grid[1]),
        a.norm == "layer",
    )


def _head(a: SimpleNamespace, width: int) -> list[LayerProfile]:
    if a.num_classes is None:
        return []
    require_sizes(vars(a), ("num_classes",))
    rows = [parts.dense("pre_logits", (), width, width)] if a.head == "tanh_mlp" else []
    return [*rows, parts.dense("head", (), width, a.num_classes)]


@layer_profile.register(layers.OverlappingPatchEmbedding)
def _(layer: layers.OverlappingPatchEmbedding, call: LayerCall) -> LayerProfile:
    if not known_shape(call):
        return unknown_shape(layer)
    stride = call.arguments.get("stride") or layer.stride
    grid = tuple(-(-side // stride) for side in call.shape[:2])
    return parts.dense(layer.name, grid, layer.kernel_size**2 * call.shape[2], layer.width)


@layer_profile.register(layers.MapPositionEmbedding)
def _(layer: layers.MapPositionEmbedding, call: LayerCall) -> LayerProfile:
    return LayerProfile(layer.name, call.shape or (), count_params(layer))


@layer_profile.register(layers.PatchMerging)
def _(layer: layers.PatchMerging, call: LayerCall) -> LayerProfile:
    if not known_shape(call):
        return unknown_shape(layer)
    grid = tuple(-(-side // layer.stride) for side in call.shape[:2])
    sizes = (layer.kernel_size, call.shape[2], layer.width)
    return parts.patch_merging(layer.name, grid, *sizes, layer.norm)


@layer_profile.register(layers.WindowEncoderBlock)
def _(layer: layers.WindowEncoderBlock, call: LayerCall) -> LayerProfile:
    if not known_shape(call):
        return unknown_shape(layer)
    rows, columns, width = call.shape
    arguments = dict(call.arguments)
    window = layer.window((rows, columns), arguments.pop("coarsening", 1))
    sizes = ((rows, columns), width)
    attention = parts.windowed_attention("attention", *sizes, layer.num_heads, window)
    mlp = call.of(layer.mlp, (rows * columns, width), **arguments)
    return parts.window_block(layer.name, *sizes, attention, mlp, layer.norm == "layer")
