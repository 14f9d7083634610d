#!/usr/bin/env bash
# OpenRLHF 0.11.2 on one node of eight GPUs, rewarded by a guided density ratio: GRPO, or REINFORCE++ with a baseline.
#
#   pip install 'openrlhf[vllm]==0.11.2' 'gdr-plugin[openrlhf]'  # the reward's models run on this node, too
#   PROMPTS=prompts.jsonl examples/openrlhf/train.sh
#
# PROMPTS has rows {"prompt": [messages], "label": {"domain": ...}}; see docs/openrlhf.md for what a label may hold.
set -euo pipefail

POLICY=${POLICY:-Qwen/Qwen2.5-7B-Instruct}
PROMPTS=${PROMPTS:?a JSONL file or data set of prompts}
CONFIG=${CONFIG:-$(dirname "$0")/gdr.yaml}
OUTPUT=${OUTPUT:-./ckpt/gdr}
PORT=${PORT:-5000}
ESTIMATOR=${ESTIMATOR:-group_norm} # group_norm: GRPO; reinforce_baseline: REINFORCE++ with a baseline
SCALE=${SCALE:-10}                 # one over the spread of raw rewards: see docs/openrlhf.md

# The reward has the last GPU to itself.
CUDA_VISIBLE_DEVICES=7 gdr serve "$CONFIG" --port "$PORT" --policy-tokenizer "$POLICY" --scale "$SCALE" --clip 5 &
server=$!
trap 'kill "$server"' EXIT
until curl --silent --fail --output /dev/null "http://127.0.0.1:$PORT/ready"; do
  kill -0 "$server" # it has said why it ended
  sleep 2
done

CUDA_VISIBLE_DEVICES=0,1,2,3,4,5,6 python -m openrlhf.cli.train_ppo_ray \
  --reward.remote_url "http://127.0.0.1:$PORT/get_reward" \
  --reward.clip_range -5 5 \
  --actor.model_name_or_path "$POLICY" \
  --actor.num_nodes 1 \
  --actor.num_gpus_per_node 4 \
  --actor.gradient_checkpointing_enable \
  --actor.adam.lr 5e-7 \
  --ref.num_nodes 1 \
  --ref.num_gpus_per_node 4 \
  --train.colocate_actor_ref \
  --vllm.num_engines 3 \
  --vllm.tensor_parallel_size 1 \
  --vllm.enable_prefix_caching \
  --vllm.gpu_memory_utilization 0.85 \
  --data.prompt_dataset "$PROMPTS" \
  --data.input_key prompt \
  --data.label_key label \
  --data.apply_chat_template \
  --data.max_len 4096 \
  --rollout.max_new_tokens 1024 \
  --rollout.batch_size 128 \
  --rollout.micro_batch_size 4 \
  --rollout.n_samples_per_prompt 8 \
  --train.batch_size 1024 \
  --train.micro_batch_size 2 \
  --algo.advantage.estimator "$ESTIMATOR" \
  --algo.kl.use_loss \
  --algo.kl.estimator k3 \
  --algo.kl.init_coef 1e-3 \
  --ds.zero_stage 3 \
  --ds.param_dtype bf16 \
  --ds.packing_samples \
  --ckpt.output_dir "$OUTPUT" \
  --ckpt.save_hf \
  --logger.tensorboard_dir "$OUTPUT/logs"
