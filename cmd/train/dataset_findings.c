/* What a person should know about the data before it costs time. */
#include <stdio.h>
#include <stdlib.h>
#include <string.h>

#include "cmd/progress.h"
#include "cmd/train/dataset_inside.h"

enum { SHOWN = 5 }; /* of a kind, by name */

static const struct {
    const char *word;       /* for machines */
    const char *one, *many; /* what it is */
    bool stops, skips;      /* stops: the training; skips: but not when --skip_bad_pictures leaves them out */
} kinds[FINDING_KINDS] = {
    [FINDING_UNREADABLE] = {"unreadable", "picture cannot be used", "pictures cannot be used", true, true},
    [FINDING_MISSING] = {"missing", "picture of the metadata file is missing", "pictures of the metadata file are missing",
                         true, true},
    [FINDING_CAPTION_BAD] = {"caption_unreadable", "caption cannot be read", "captions cannot be read", true, true},
    [FINDING_CAPTION_NONE] = {"caption_missing", "picture has neither caption nor tags in the metadata file",
                              "pictures have neither caption nor tags in the metadata file", true, true},
    [FINDING_MASK_BAD] = {"mask_unusable", "picture lacks a mask of its loss that can be used",
                          "pictures lack masks of their loss that can be used", true, true},
    [FINDING_LATENTS_BAD] = {"latents_unusable", "file of latents cannot be used", "files of latents cannot be used", true,
                             true},
    [FINDING_CAPTION_EMPTY] = {"caption_empty", "picture has no caption and is learned without words",
                               "pictures have no caption and are learned without words", false, false},
    [FINDING_CAPTION_WORDS] = {"caption_from_folder", "picture has no caption file and takes its folder's words",
                               "pictures have no caption file and take their folder's words", false, false},
    [FINDING_CAPTION_LONG] = {"caption_long", "caption is longer than the text encoder reads; its end is not learned",
                              "captions are longer than the text encoder reads; their ends are not learned", false, false},
    [FINDING_TINY] = {"tiny", "picture is less than half as large as what it is enlarged to",
                      "pictures are less than half as large as what they are enlarged to", false, false},
    [FINDING_TURNED] = {"turned", "picture is turned upright, as its EXIF data say",
                        "pictures are turned upright, as their EXIF data say", false, false},
    [FINDING_FOLDER] = {"folder_ignored", "folder is left out", "folders are left out", false, false},
    [FINDING_LOOSE] = {"loose_picture", "picture lies beside the folders and is left out",
                       "pictures lie beside the folders and are left out", false, false},
    [FINDING_LATENTS_SOME] = {"latents_incomplete", "picture lacks its .npz file, so that none of these files is used",
                              "pictures lack their .npz files, so that none of these files is used", false, false},
    [FINDING_REG_UNUSED] = {"regularisation_unused",
                            "regularisation picture is not used: there are more of them than samples to learn",
                            "regularisation pictures are not used: there are more of them than samples to learn", false, false},
    [FINDING_PLAIN_FOLDER] = {"plain_folder", "folder has its pictures directly in it",
                              "folders have their pictures directly in them", false, false},
};

int dataset_find(struct dataset *d, enum finding_kind kind, const char *name, const char *detail, struct err *err)
{
    if (mem_grow(&d->finding, &d->finding_cap, d->findings, sizeof *d->finding, "a list of findings", err))
        return -1;
    d->finding[d->findings++] = (struct finding){kind, name, detail};
    return 0;
}

bool dataset_stops(const struct dataset *d, enum finding_kind kind)
{
    return kinds[kind].stops && !(kinds[kind].skips && d->o.skip_bad_pictures);
}

static int print_json(const struct dataset *d, struct err *err)
{
    for (size_t i = 0; i < d->findings; i++) {
        const struct finding *f = &d->finding[i];
        json_t *j = json_pack("{s:s, s:s, s:s, s:b, s:s*}", "event", "finding", "kind", kinds[f->kind].word, "subject", f->name,
                              "stops", (int)dataset_stops(d, f->kind), "detail", f->detail);
        char *line = j ? json_dumps(j, JSON_COMPACT) : NULL;

        json_decref(j);
        if (!line)
            return err_memory(err, 256, "a finding");
        fprintf(stderr, "%s\n", line);
        free(line);
    }
    return 0;
}

static void print_kind(const struct dataset *d, enum finding_kind kind, size_t count)
{
    bool left_out = kinds[kind].stops && !dataset_stops(d, kind);
    char line[1024];
    size_t shown = 0;

    snprintf(line, sizeof line, "%s %zu %s%s", dataset_stops(d, kind) ? "error:" : "note:", count,
             count == 1 ? kinds[kind].one : kinds[kind].many, left_out ? " and left out" : "");
    progress_line(line);
    for (size_t i = 0; i < d->findings && shown < SHOWN; i++) {
        const struct finding *f = &d->finding[i];

        if (f->kind != kind)
            continue;
        snprintf(line, sizeof line, "    %s%s%s", f->name, f->detail ? ": " : "", f->detail ? f->detail : "");
        progress_line(line);
        shown++;
    }
    if (count > shown) {
        snprintf(line, sizeof line, "    and %zu more", count - shown);
        progress_line(line);
    }
}

int dataset_print_findings(const struct dataset *d, const struct command_run *run, struct err *err)
{
    size_t count[FINDING_KINDS] = {0}, stop = 0;

    for (size_t i = 0; i < d->findings; i++) {
        count[d->finding[i].kind]++;
        stop += dataset_stops(d, d->finding[i].kind);
    }
    if (run->json && print_json(d, err))
        return -1;
    for (enum finding_kind k = 0; k < FINDING_KINDS && !run->json; k++)
        if (count[k] && (dataset_stops(d, k) || !run->quiet))
            print_kind(d, k, count[k]);
    if (stop)
        return err_set(err,
                       "%zu %s of the training data cannot be used; correct what is listed above, or go on without with "
                       "--skip_bad_pictures",
                       stop, stop == 1 ? "file" : "files");
    return 0;
}
