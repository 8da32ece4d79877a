/* The parts of a Stable Diffusion model. */
#ifndef REF_BASE_PART_H
#define REF_BASE_PART_H

enum model_part {
    MODEL_UNET,
    MODEL_TEXT_ENCODER,
    MODEL_VAE,
    MODEL_OTHER, /* what files carry along without use here: EMA copies, noise schedules, OpenCLIP's last block */
    MODEL_PARTS
};

#endif
