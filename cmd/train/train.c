/* lora train: a LoRA from pictures. */
#include "cmd/train/check.h"
#include "cmd/train/train.h"

#include <stdlib.h>
#include <sys/stat.h>

static const struct command_example examples[] = {
    {"a subject: pictures in data/20_sks dog (20 is how often each is shown in an epoch)",
     "lora train --pretrained_model_name_or_path model.safetensors --train_data_dir data --resolution 512 --output_dir out "
     "--network_dim 8 --max_train_steps 1000 --cache_latents"},
    {"pictures of any shape with captions in .txt files, the loss of a tenth of them measured",
     "lora train --pretrained_model_name_or_path model.safetensors --train_data_dir data --caption_extension .txt "
     "--resolution 512 --enable_bucket --shuffle_caption --validation_split 0.1 --output_dir out --max_train_epochs 10"},
    {"with everything else left as it is: pictures of other things, best drawn by the model itself (lora generate --scale 1), are held to "
     "what it makes of them without the LoRA",
     "lora train --pretrained_model_name_or_path model.safetensors --train_data_dir data --reg_data_dir others --prior_loss_target "
     "model --caption_dropout_rate 0.1 --resolution 512 --output_dir out --network_dim 8 --max_train_steps 2000 --cache_latents"},
    {"go on after an interruption", "lora train --config out/last.options.json --resume out"},
    {0},
};

static int summary(const struct trainer *t, struct err *err)
{
    char *table = dataset_table(t->data, err);

    if (!table)
        return -1;
    if (!t->run->quiet && !t->run->json) {
        fputs(table, stderr);
        fprintf(stderr, "%zu modules, %zu numbers to learn; %zu steps, %zu epochs of %zu\n", t->net->count, t->net->used, t->steps,
                t->epochs, t->steps_per_epoch);
        fprintf(stderr, "optimizer %s (%s)\n", optim_name(t->optim), optim_args(t->optim));
    }
    free(table);
    return 0;
}

static int report(const struct trainer *t, struct err *err)
{
    struct stat st = {0};
    char size[32];

    (void)stat(t->last_written, &st); /* the size is a courtesy: the file has been committed */
    if (t->run->json)
        return command_print_json(json_pack("{s:s, s:I, s:I, s:I, s:I, s:f, s:f, s:f, s:I}", "output", t->last_written, "bytes",
                                            (json_int_t)st.st_size, "modules", (json_int_t)t->net->count, "steps",
                                            (json_int_t)t->now.step, "skipped", (json_int_t)t->now.skipped, "seconds", t->now.seconds,
                                            "loss", t->step_loss, "validation_loss", t->validation_loss, "seed",
                                            (json_int_t)t->seed), err);
    if (t->run->quiet)
        return 0;
    printf("wrote '%s': %zu modules, %s, %zu steps in %.0f s", t->last_written, t->net->count,
           command_bytes((unsigned long long)st.st_size, size, sizeof size), t->now.step, t->now.seconds);
    if (t->now.skipped)
        printf(", %zu steps skipped", t->now.skipped);
    printf("\ntry it: lora generate --ckpt '%s' --lora '%s' --prompt '...'\n", t->o->pretrained_model_name_or_path, t->last_written);
    return 0;
}

static int write_options(const struct trainer *t, struct err *err)
{
    struct arena a = {0};
    char *path = arena_printf(&a, err, "%s/%s", t->o->output_dir, train_name(t, "last"));
    int rc = path ? command_write_options(t->run, path, err) : -1;

    arena_free(&a);
    return rc;
}

static int run(const struct command_run *run, void *options, struct err *err)
{
    struct trainer t = {0};
    struct train_options *o = options;
    int rc = train_open(&t, run, o, err);

    if (rc == 0 && o->data.debug_dataset)
        rc = dataset_sheet(t.data, 0, 100, o->output_dir, err);
    else if (rc == 0 && o->check)
        rc = train_check(&t, o->check, err);
    else if (rc == 0)
        rc = summary(&t, err) || write_options(&t, err) || train_loop(&t, err) || report(&t, err) ? -1 : 0;
    train_close(&t);
    return rc;
}

static const char *const aliases[] = {"train_network", NULL};

const struct command command_train = {
    .name = "train",
    .aliases = aliases,
    .summary = "make a LoRA from pictures",
    .description =
        "Pictures lie in folders named REPEATS_words under --train_data_dir; a caption is a text file beside its picture, or else "
        "the words in the folder's name. What is odd about the data is told before anything costs time, and so is the memory "
        "that the training will need.\n\n"
        "Ctrl-C and SIGTERM finish the step, then save the LoRA and a state file; --resume goes on from it bit for bit. A step "
        "whose loss or gradients are not finite is skipped and counted. The same --seed gives the same file on any number of "
        "threads.\n\n"
        "Options are those of sd-scripts' train_network.py; a command line for it works after 'accelerate launch ... "
        "train_network.py' is replaced by 'lora train'. Different on purpose: files are .safetensors and hold alpha (the rank, "
        "unless given: the same scale as without), the learning rate is 1e-4 unless given, and --resume goes on at its step.",
    .options = train_option_rows,
    .options_size = sizeof(struct train_options),
    .examples = examples,
    .exit_notes = "the training was stopped by a signal (LoRA and state are saved), or the loss stayed not finite",
    .run = run,
};
