"""Models with a part that sees or hears, whose projector the converter writes with ``--mmproj``."""

from tests.architectures.small import EXPERTS, LINEAR, LOCAL, SMALL, Config, Small
from tests.architectures.stored_model import Stored

HALF = [0.5, 0.5, 0.5]
CLIP_MEAN = [0.48145466, 0.4578275, 0.40821073]
CLIP_STD = [0.26862954, 0.26130258, 0.27577711]
TOWER: Config = {
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_hidden_layers": 1,
    "num_attention_heads": 2,
    "image_size": 56,
    "patch_size": 14,
}
QWEN_TOWER: Config = {
    "depth": 1,
    "hidden_size": 64,
    "intermediate_size": 128,
    "num_heads": 2,
    "out_hidden_size": 256,
}
MROPE: Config = {
    "rope_type": "default",
    "rope_theta": 10000.0,
    "mrope_section": [3, 3, 2],
    "partial_rotary_factor": 0.25,
}
WHISPER: Config = {
    "num_mel_bins": 16,
    "max_source_positions": 24,
    "vocab_size": 512,
    "pad_token_id": 0,
}


def preprocessor(mean: list[float], std: list[float], **entries: object) -> dict[str, Config]:
    """preprocessor_config.json of an image processor."""
    config = {"do_normalize": True, "do_rescale": True, "image_mean": mean, "image_std": std}
    return {"preprocessor_config.json": {**config, **entries}}


QWEN_IMAGES = preprocessor(
    HALF,
    HALF,
    image_processor_type="Qwen2VLImageProcessorFast",
    merge_size=2,
    patch_size=16,
    size={"longest_edge": 16777216, "shortest_edge": 65536},
    temporal_patch_size=2,
)

# The converter finds the projector's layers by number up to that of the tower's, so of some towers
# there are three.
WRAPPERS: dict[str, Stored] = {
    "gemma3-vision": Stored(
        Small(
            "gemma3",
            "Gemma3ForConditionalGeneration",
            {
                "text_config": {"head_dim": 64, "sliding_window": 64},
                "vision_config": {**TOWER, "vision_use_head": False},
                "tie_word_embeddings": True,
                "mm_tokens_per_image": 4,
                "image_token_index": 5,
                "boi_token_index": 6,
                "eoi_token_index": 7,
            },
            "pieces",
        ),
        "google/gemma-3-4b-it",
        files=preprocessor(
            HALF,
            HALF,
            image_processor_type="Gemma3ImageProcessor",
            image_seq_length=4,
            processor_class="Gemma3Processor",
            size={"height": 56, "width": 56},
        ),
        renamed=("vision_tower.", "vision_tower.vision_model."),
        projector=True,
    ),
    "gemma4-vision": Stored(
        Small(
            "gemma4",
            "Gemma4ForConditionalGeneration",
            {
                "text_config": SMALL["gemma4"].config,
                "tie_word_embeddings": True,
                "vision_config": {
                    "hidden_size": 64,
                    "intermediate_size": 128,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "num_key_value_heads": 2,
                    "head_dim": 32,
                    "global_head_dim": 32,
                    "position_embedding_size": 64,
                },
                "audio_config": {
                    "hidden_size": 64,
                    "num_hidden_layers": 1,
                    "num_attention_heads": 2,
                    "output_proj_dims": 64,
                    "subsampling_conv_channels": [16, 8],
                },
                "image_token_id": 5,
                "audio_token_id": 6,
            },
            "merges",
        ),
        "google/gemma-4-E2B-it",
        files={
            **preprocessor(HALF, HALF, image_processor_type="Gemma4ImageProcessor"),
            "config.json": {"text_config": {"global_head_dim": 64}},
        },
        projector=True,
    ),
    "qwen25vl": Stored(
        Small(
            "qwen2vl",
            "Qwen2_5_VLForConditionalGeneration",
            {
                "text_config": SMALL["qwen2vl"].config["text_config"],
                "vision_config": {**QWEN_TOWER, "depth": 3, "fullatt_block_indexes": [2]},
            },
        ),
        "Qwen/Qwen2.5-VL-3B-Instruct",
        files=preprocessor(
            CLIP_MEAN,
            CLIP_STD,
            image_processor_type="Qwen2VLImageProcessor",
            max_pixels=12845056,
            merge_size=2,
            min_pixels=3136,
            patch_size=14,
            temporal_patch_size=2,
        ),
        projector=True,
    ),
    "qwen3vl": Stored(
        SMALL["qwen3vl"], "Qwen/Qwen3-VL-4B-Instruct", files=QWEN_IMAGES, projector=True
    ),
    "qwen35-vision": Stored(
        Small(
            "qwen35",
            "Qwen3_5ForConditionalGeneration",
            {
                "text_config": {**LINEAR, "intermediate_size": 256},
                "vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": []},
            },
            predictor="mtp",
        ),
        "Qwen/Qwen3.5-9B",
        files={
            **QWEN_IMAGES,
            "config.json": {"text_config": {"mtp_num_hidden_layers": 1, "rope_parameters": MROPE}},
        },
        projector=True,
    ),
    "qwen35moe-vision": Stored(
        Small(
            "qwen35moe",
            "Qwen3_5MoeForConditionalGeneration",
            {
                "text_config": {
                    **EXPERTS,
                    **LINEAR,
                    "moe_intermediate_size": 64,
                    "shared_expert_intermediate_size": 128,
                },
                "vision_config": {**QWEN_TOWER, "deepstack_visual_indexes": []},
            },
            predictor="mtp",
        ),
        "Qwen/Qwen3.5-35B-A3B",
        files={
            **QWEN_IMAGES,
            "config.json": {"text_config": {"mtp_num_hidden_layers": 1, "rope_parameters": MROPE}},
        },
        projector=True,
    ),
    "mistral3-vision": Stored(
        Small(
            "mistral3",
            "Mistral3ForConditionalGeneration",
            {
                "text_config": {"model_type": "mistral", "head_dim": 64, "sliding_window": None},
                "vision_config": {
                    **TOWER,
                    "model_type": "pixtral",
                    "head_dim": 32,
                    "num_hidden_layers": 3,
                },
                "spatial_merge_size": 2,
                "image_token_index": 5,
            },
        ),
        "mistralai/Mistral-Small-3.1-24B-Instruct-2503",
        files=preprocessor(
            CLIP_MEAN,
            CLIP_STD,
            image_processor_type="PixtralImageProcessor",
            patch_size={"height": 14, "width": 14},
            processor_class="PixtralProcessor",
            size={"longest_edge": 1540},
        ),
        tokens={"<|observation|>": "[IMG_BREAK]"},
        projector=True,
    ),
    "llama4-vision": Stored(
        Small(
            "llama4",
            "Llama4ForConditionalGeneration",
            {
                "text_config": {
                    **LOCAL,
                    "num_experts_per_tok": 1,
                    "head_dim": 64,
                    "intermediate_size": 128,
                    "intermediate_size_mlp": 256,
                    "interleave_moe_layer_step": 2,
                },
                "vision_config": {
                    **TOWER,
                    "intermediate_size": 256,
                    "projector_input_dim": 128,
                    "projector_output_dim": 128,
                    "vision_output_dim": 128,
                    "num_hidden_layers": 3,
                },
            },
        ),
        "meta-llama/Llama-4-Scout-17B-16E-Instruct",
        files=preprocessor(
            HALF,
            HALF,
            image_processor_type="Llama4ImageProcessorFast",
            processor_class="Llama4Processor",
            size={"height": 56, "width": 56},
        ),
        projector=True,
    ),
    "smolvlm": Stored(
        Small(
            "llama",
            "SmolVLMForConditionalGeneration",
            {
                "text_config": {"model_type": "llama"},
                "vision_config": TOWER,
                "scale_factor": 2,
                "image_token_id": 5,
            },
        ),
        "HuggingFaceTB/SmolVLM2-2.2B-Instruct",
        files={
            **preprocessor(
                HALF,
                HALF,
                image_processor_type="SmolVLMImageProcessor",
                max_image_size={"longest_edge": 56},
                processor_class="SmolVLMProcessor",
                size={"longest_edge": 112},
            ),
            "config.json": {"text_config": {"architectures": ["VLlama3ForCausalLM"]}},
        },
        projector=True,
    ),
    "qwen2-audio": Stored(
        Small(
            "qwen2",
            "Qwen2AudioForConditionalGeneration",
            {
                "text_config": {"model_type": "qwen2"},
                "audio_config": {
                    **WHISPER,
                    "d_model": 64,
                    "encoder_attention_heads": 2,
                    "encoder_ffn_dim": 128,
                    "encoder_layers": 3,
                },
                "audio_token_index": 5,
            },
        ),
        "Qwen/Qwen2-Audio-7B-Instruct",
        files={
            "preprocessor_config.json": {
                "chunk_length": 30,
                "feature_extractor_type": "WhisperFeatureExtractor",
                "feature_size": 16,
                "hop_length": 160,
                "n_fft": 400,
                "processor_class": "Qwen2AudioProcessor",
                "sampling_rate": 16000,
            }
        },
        projector=True,
    ),
    "voxtral": Stored(
        Small(
            "llama",
            "VoxtralForConditionalGeneration",
            {
                "text_config": {"model_type": "llama", "head_dim": 64},
                "audio_config": {
                    **WHISPER,
                    "hidden_size": 64,
                    "intermediate_size": 256,
                    "num_attention_heads": 2,
                    "num_hidden_layers": 3,
                },
                "audio_token_id": 5,
            },
        ),
        "mistralai/Voxtral-Mini-3B-2507",
        files={
            "preprocessor_config.json": {
                "feature_extractor_type": "WhisperFeatureExtractor",
                "feature_size": 16,
                "processor_class": "VoxtralProcessor",
            }
        },
        projector=True,
    ),
}
