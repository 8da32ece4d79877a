/* What a model is: refusals, architecture, what is there and what is missing. */
#include <stdio.h>
#include <string.h>

#include "formats/lora_file.h"
#include "formats/model_inside.h"

enum { SD1_WIDTH = 768, SD2_WIDTH = 1024, SDXL_WIDTH = 2048, REFINER_WIDTH = 1280 };

static bool begins(const char *name, const char *with)
{
    return strncmp(name, with, strlen(with)) == 0;
}

/* Names that other kinds of files have and Stable Diffusion 1.x and 2.x have not. */
static const struct {
    const char *part_of_name, *is;
    bool at_start;
} others[] = {
    {"conditioner.embedders.", "an SDXL checkpoint; SDXL is not supported, give a Stable Diffusion 1.x or 2.x model", true},
    {"add_embedding.linear_1.", "an SDXL U-Net; SDXL is not supported, give a Stable Diffusion 1.x or 2.x model", false},
    {"joint_blocks.", "a Stable Diffusion 3 model; it is not supported, give a 1.x or 2.x model", false},
    {"attn.add_q_proj.", "a Stable Diffusion 3 or Flux transformer; it is not supported, give a Stable Diffusion 1.x or 2.x model", false},
    {"double_blocks.", "a Flux model; it is not supported, give a Stable Diffusion 1.x or 2.x model", false},
    {"single_transformer_blocks.", "a Flux transformer; it is not supported, give a Stable Diffusion 1.x or 2.x model", false},
    {"controlnet_", "a ControlNet; give a Stable Diffusion checkpoint", true},
    {"control_model.", "a ControlNet; give a Stable Diffusion checkpoint", true},
    {"input_hint_block.", "a ControlNet; give a Stable Diffusion checkpoint", false},
    {"time_stack.", "a video model; give a Stable Diffusion 1.x or 2.x model", false},
    {"motion_modules.", "an AnimateDiff motion module; give a Stable Diffusion checkpoint", false},
    {"noise_augmentor.", "a Stable Diffusion 2 unCLIP model; it is not supported, give a plain 2.x model", true},
    {"emb_params", "a textual inversion embedding; give a Stable Diffusion checkpoint", true},
    {"string_to_param", "a textual inversion embedding; give a Stable Diffusion checkpoint", true},
};

int model_refuse(const struct model *m, struct err *err)
{
    for (size_t f = 0; f < m->file_count; f++) {
        if (lora_file_claims(m->file[f]))
            return err_set(err, "cannot use '%s' as a model: it is a LoRA file; give the checkpoint that it belongs to",
                           m->file[f]->path);
        for (size_t i = 0; i < m->file[f]->count; i++)
            for (size_t k = 0; k < sizeof others / sizeof others[0]; k++) {
                const char *name = m->file[f]->entries[i].name;

                if (others[k].at_start ? begins(name, others[k].part_of_name) : strstr(name, others[k].part_of_name) != NULL)
                    return err_set(err, "cannot use '%s' as a model: it is %s", m->file[f]->path, others[k].is);
            }
    }
    return 0;
}

/* The second dimension of the first tensor of a part whose name ends like this, or 0. */
static size_t width_of(const struct model *m, enum model_part part, const char *end, int *ndim)
{
    size_t n = strlen(end);

    for (size_t i = m->part_first[part]; i < m->part_first[part + 1]; i++) {
        const struct model_tensor *t = &m->tensor[i];
        size_t len = strlen(t->name);

        if (len >= n && strcmp(t->name + len - n, end) == 0 && t->shape.ndim >= 2) {
            if (ndim)
                *ndim = t->shape.ndim;
            return t->shape.dim[1];
        }
    }
    return 0;
}

/* SD1 looks at CLIP-L (768 wide), SD2 at OpenCLIP-H (1024). Models of other widths are told by their construction: OpenCLIP
 * names or exact GELU, and linear instead of convolutional projections, are SD2's. */
static enum model_arch find_arch(const struct model *m, size_t text_width, int proj_dims)
{
    size_t width = m->context_width ? m->context_width : text_width;

    if (width == 0)
        return MODEL_ARCH_UNKNOWN;
    if (width == SD1_WIDTH || width == SD2_WIDTH)
        return width == SD1_WIDTH ? MODEL_SD1 : MODEL_SD2;
    if (m->arch != MODEL_ARCH_UNKNOWN) /* a folder's config said so */
        return m->arch;
    return m->plan.openclip || proj_dims == 2 ? MODEL_SD2 : MODEL_SD1;
}

static void find_whole(struct model *m)
{
    static const struct {
        enum model_part part;
        const char *name;
    } needed[] = {
        {MODEL_UNET, "conv_in.weight"},
        {MODEL_UNET, "time_embedding.linear_2.weight"},
        {MODEL_UNET, "down_blocks.0.resnets.0.conv1.weight"},
        {MODEL_UNET, "mid_block.resnets.1.conv2.weight"},
        {MODEL_UNET, "up_blocks.0.resnets.0.conv1.weight"},
        {MODEL_UNET, "conv_out.weight"},
        {MODEL_TEXT_ENCODER, "text_model.embeddings.token_embedding.weight"},
        {MODEL_TEXT_ENCODER, "text_model.encoder.layers.0.mlp.fc1.weight"},
        {MODEL_TEXT_ENCODER, "text_model.final_layer_norm.weight"},
        {MODEL_VAE, "encoder.conv_in.weight"},
        {MODEL_VAE, "decoder.conv_out.weight"},
        {MODEL_VAE, "decoder.mid_block.attentions.0.to_q.weight"},
    };

    for (int p = 0; p < MODEL_PARTS; p++)
        m->has[p] = m->whole[p] = m->part_first[p + 1] > m->part_first[p];
    for (size_t i = 0; i < sizeof needed / sizeof needed[0]; i++)
        if (!model_find(m, needed[i].part, needed[i].name))
            m->whole[needed[i].part] = false;
}

/* The type of most bytes, and whether other float types occur. */
static void find_dtype(struct model *m)
{
    size_t bytes[DT_COUNT] = {0};
    enum model_part main_part = m->has[MODEL_UNET] ? MODEL_UNET : m->has[MODEL_TEXT_ENCODER] ? MODEL_TEXT_ENCODER : MODEL_VAE;

    for (size_t i = m->part_first[main_part]; i < m->part_first[main_part + 1]; i++)
        bytes[m->tensor[i].dtype] += m->tensor[i].nbytes;
    m->dtype = DT_F32;
    for (int t = 0; t < DT_COUNT; t++)
        if (bytes[t] > bytes[m->dtype])
            m->dtype = (enum dtype)t;
    for (size_t i = 0; i < m->part_first[MODEL_OTHER]; i++)
        m->mixed = m->mixed || m->tensor[i].dtype != m->dtype;
}

static void find_prediction(struct model *m)
{
    const char *said = tensor_file_metadata(m->file[0], "modelspec.prediction_type");

    if (said && (strcmp(said, "v") == 0 || strcmp(said, "epsilon") == 0)) {
        m->prediction = said[0] == 'v' ? MODEL_V : MODEL_EPSILON;
        m->prediction_from = "its metadata (modelspec.prediction_type)";
    } else if (m->prediction == MODEL_PREDICTION_UNKNOWN && tensor_file_find(m->file[0], "v_pred")) {
        m->prediction = MODEL_V;
        m->prediction_from = "its tensor 'v_pred'";
    }
}

int model_find_kind(struct model *m, struct err *err)
{
    const struct model_tensor *conv_in = model_find(m, MODEL_UNET, "conv_in.weight");
    int proj_dims = 0;
    size_t text_width = width_of(m, MODEL_TEXT_ENCODER, "embeddings.token_embedding.weight", NULL);

    find_whole(m);
    if (!m->has[MODEL_UNET] && !m->has[MODEL_TEXT_ENCODER] && !m->has[MODEL_VAE])
        return err_set(err, "cannot use '%s' as a model: none of its %zu tensors belongs to a U-Net, text encoder or VAE of Stable "
                            "Diffusion ('%s' is the first); give a checkpoint", m->path, m->count,
                       m->count ? m->in_source[0]->name : "");
    m->context_width = width_of(m, MODEL_UNET, ".attn2.to_k.weight", NULL);
    width_of(m, MODEL_UNET, ".proj_in.weight", &proj_dims);
    if (m->context_width == SDXL_WIDTH || m->context_width == REFINER_WIDTH)
        return err_set(err, "cannot use '%s' as a model: it is an SDXL U-Net; SDXL is not supported, give a Stable Diffusion 1.x or "
                            "2.x model", m->path);
    m->arch = find_arch(m, text_width, proj_dims);
    m->in_channels = conv_in && conv_in->shape.ndim == 4 ? conv_in->shape.dim[1] : 0;
    m->text_layers = m->plan.text_used;
    find_dtype(m);
    find_prediction(m);
    return 0;
}

int model_need(const struct model *m, enum model_part part, struct err *err)
{
    static const char *const give[MODEL_PARTS] = {
        "give a checkpoint with one",
        "give a checkpoint with one",
        "give a checkpoint with one, or a VAE file with --vae",
        "",
    };

    if (m->has[part] && m->whole[part])
        return 0;
    return err_set(err, "'%s' has %s %s; %s", m->path, m->has[part] ? "only a piece of a" : "no", names_part(part), give[part]);
}

int model_expect_v2(const struct model *m, bool v2_given, struct err *err)
{
    if (m->arch == MODEL_SD2 && !v2_given)
        return err_usage(err, "'%s' is a Stable Diffusion 2.x model, but --v2 was not given; add --v2, or give a 1.x model", m->path);
    if (m->arch == MODEL_SD1 && v2_given)
        return err_usage(err, "'%s' is a Stable Diffusion 1.x model, but --v2 was given; leave --v2 out, or give a 2.x model", m->path);
    return 0;
}

static struct shape without_ones(struct shape s)
{
    while (s.ndim > 0 && s.dim[s.ndim - 1] == 1)
        s.ndim--;
    return s;
}

int model_expect_same(const struct model *a, const struct model *b, enum model_part part, struct err *err)
{
    static const char *const arch[] = {"of an unknown version", "Stable Diffusion 1.x", "Stable Diffusion 2.x"};
    size_t i = a->part_first[part], j = b->part_first[part], i_end = a->part_first[part + 1], j_end = b->part_first[part + 1];
    char sa[128], sb[128];

    if (a->arch && b->arch && a->arch != b->arch)
        return err_set(err, "'%s' is %s and '%s' is %s; give two models of the same architecture", a->path, arch[a->arch], b->path,
                       arch[b->arch]);
    for (; i < i_end || j < j_end; i++, j++) {
        int c = i == i_end ? 1 : j == j_end ? -1 : strcmp(a->tensor[i].name, b->tensor[j].name);
        struct shape x, y;

        if (c != 0)
            return err_set(err, "'%s' lacks the %s's '%s' that '%s' has; give two models of the same architecture",
                           c < 0 ? b->path : a->path, names_part(part), c < 0 ? a->tensor[i].name : b->tensor[j].name,
                           c < 0 ? a->path : b->path);
        x = without_ones(a->tensor[i].shape), y = without_ones(b->tensor[j].shape);
        if (!shape_equal(&x, &y))
            return err_set(err, "the %s's '%s' is %s in '%s' and %s in '%s'; give two models of the same architecture",
                           names_part(part), a->tensor[i].name, shape_print(&a->tensor[i].shape, sa, sizeof sa), a->path,
                           shape_print(&b->tensor[j].shape, sb, sizeof sb), b->path);
    }
    return 0;
}

/* Appends to a text of limited size. */
static void add(char *buf, size_t size, const char *what)
{
    size_t n = strlen(buf);

    if (n + 1 < size)
        snprintf(buf + n, size - n, "%s", what);
}

const char *model_kind_text(const struct model *m, char *buf, size_t size)
{
    static const char *const version[] = {"Stable Diffusion", "Stable Diffusion 1.x", "Stable Diffusion 2.x"};
    static const char *const between[] = {"", "", " and ", ", "};
    int parts = m->has[MODEL_UNET] + m->has[MODEL_TEXT_ENCODER] + m->has[MODEL_VAE], left = parts;
    const char *only = m->has[MODEL_UNET] ? "U-Net" : m->has[MODEL_VAE] ? "VAE" : "text encoder";

    snprintf(buf, size, "%s %s (%s layout)", version[m->arch], parts == 1 ? only : m->folder ? "model folder" : "checkpoint",
             m->layout == MODEL_LDM ? "LDM" : "diffusers");
    if (m->in_channels == 9)
        add(buf, size, ", inpainting");
    else if (m->in_channels == 5)
        add(buf, size, ", depth to image");
    else if (m->in_channels == 7)
        add(buf, size, ", upscaler");
    else if (m->in_channels == 8)
        add(buf, size, ", picture editing");
    if (m->prediction != MODEL_PREDICTION_UNKNOWN)
        add(buf, size, m->prediction == MODEL_V ? ", v-prediction" : ", epsilon-prediction");
    add(buf, size, ", ");
    add(buf, size, dtype_name(m->dtype));
    if (m->mixed)
        add(buf, size, " and other types");
    for (int p = 0; parts > 1 && p < MODEL_OTHER; p++)
        if (m->has[p]) {
            add(buf, size, left == parts ? ", with " : between[left == 1 ? 2 : 3]);
            add(buf, size, names_part((enum model_part)p));
            left--;
        }
    if (m->has[MODEL_UNET] && parts > 1 && parts < 3)
        add(buf, size, m->has[MODEL_VAE] ? ", no text encoder" : ", no VAE");
    if (m->ema)
        add(buf, size, ", EMA copy");
    return buf;
}
