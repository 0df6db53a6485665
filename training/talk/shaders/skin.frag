#version 330
#include "light.glsl"

in vec3 at;
in vec3 facing;
in vec3 base;
in vec4 mask;
in vec4 in_light;
in float openness;
in vec3 tint;

uniform sampler2D detail;  // red: albedo, green: hair, blue: height, alpha: freckles; around the head, as in skin.py
uniform sampler2D relief;  // its height's slopes
uniform vec3 skin_colour;
uniform vec3 lip_colour;
uniform vec3 hair_colour;
uniform vec3 lid_colour;
uniform float lip_front;   // z of the lips: how deep in the mouth a place lies
uniform float mouth_open;
uniform float ruddiness;
uniform float oiliness;
uniform float lip_gloss;

out vec4 colour;

void main() {
    vec3 view = normalize(camera - at);
    vec3 smooth_normal = normalize(facing);
    float lit = key_visible(in_light, 0.0022);
    float inside = mask.y;
    float lip = smoothstep(0.25, 0.75, mask.x) * (1.0 - inside);

    float around = atan(base.x, base.z - 0.42);
    vec2 uv = vec2(around / 6.28319 + 0.5, (8.7 - base.y) / 4.3);
    vec4 painted = texture(detail, uv);
    vec2 slope = texture(relief, uv).rg * 2.0 - 1.0;
    vec3 tangent = normalize(cross(vec3(0.0, 1.0, 0.0), smooth_normal) + 1e-4);
    vec3 bitangent = cross(smooth_normal, tangent);
    float bumps = 0.42 * (1.0 - 0.4 * lip);
    vec3 n = normalize(smooth_normal - bumps * (slope.x * tangent - slope.y * bitangent));

    vec3 albedo = skin_colour;
    float redness = ruddiness * (tint.x + 0.55 * mask.z + 0.35 * mask.w);
    albedo = mix(albedo, albedo * vec3(1.13, 0.73, 0.68), clamp(redness, 0.0, 1.0));
    albedo *= mix(vec3(1.0), vec3(0.80, 0.72, 0.74), 0.45 * tint.y);
    albedo = mix(albedo, albedo * lid_colour, smoothstep(0.3, 0.9, mask.w));
    albedo *= 0.80 + 0.40 * painted.r;
    albedo = mix(albedo, albedo * vec3(0.55, 0.40, 0.33), painted.a * 0.55);
    albedo = mix(albedo, lip_colour * (0.85 + 0.3 * painted.r), lip * 0.88);
    float hair = painted.g * (1.0 - lip) * (1.0 - inside) * step(5.6, base.y);
    // Between the roots it is dark: the scalp is shaded by what grows on it, brows and stubble are not.
    float scalp = max(smoothstep(7.56, 7.66, base.y), smoothstep(1.1, 1.3, abs(around)));
    albedo = mix(albedo, hair_colour * mix(1.0, 0.4, scalp), hair);

    float open_sky = openness;
    float depth = smoothstep(lip_front, lip_front - 0.42, base.z);
    if (inside > 0.02) {
        albedo = mix(albedo, vec3(0.36, 0.10, 0.085), inside);
        open_sky *= mix(1.0, mix(0.62, 0.03, depth) * (0.25 + 0.75 * mouth_open), inside);
    }

    // Light spreads under the skin, red furthest: each colour wraps further around and sees a smoother surface.
    vec3 wrap = vec3(0.32, 0.20, 0.15) * (1.0 - hair);
    vec3 red_normal = normalize(mix(n, smooth_normal, 0.85));
    vec3 green_normal = normalize(mix(n, smooth_normal, 0.5));
    vec3 key = vec3(dot(red_normal, key_direction), dot(green_normal, key_direction), dot(n, key_direction));
    key = max((key + wrap) / (1.0 + wrap), 0.0);
    key *= key * 0.35 + 0.65;
    vec3 fill = vec3(dot(red_normal, fill_direction), dot(n, fill_direction), dot(n, fill_direction));
    fill = max((fill + wrap * 1.4) / (1.0 + wrap * 1.4), 0.0);
    vec3 rim = max((vec3(dot(smooth_normal, rim_direction)) + wrap) / (1.0 + wrap), 0.0);
    vec3 key_lit = pow(vec3(lit), vec3(0.62, 0.88, 1.0));
    vec3 sky_lit = pow(vec3(open_sky), vec3(0.75, 1.0, 1.1));
    vec3 diffuse = key_colour * key * key_lit * mix(vec3(1.0), sky_lit, 0.45);
    diffuse += fill_colour * fill * sky_lit;
    diffuse += rim_colour * rim * mix(vec3(1.0), sky_lit, 0.6);
    diffuse += ambient(n) * sky_lit;
    float through_ear = mask.z * pow(max(dot(-view, rim_direction) * 0.5 + 0.5, 0.0), 2.0) * 0.22;
    diffuse += vec3(1.0, 0.30, 0.18) * through_ear * rim_colour;

    const float REFLECTANCE = 0.028;  // of skin, at right angles
    float nv = max(dot(n, view), 0.0);
    float roughness = mix(0.56, 0.45, oiliness * tint.z);
    roughness = mix(roughness, 0.36 - 0.1 * lip_gloss, lip);
    roughness = mix(roughness, 0.24, inside);
    float shine = mix(1.0, 0.12, inside * depth) * (1.0 - 0.6 * hair);
    float broad = highlight(n, view, key_direction, roughness, REFLECTANCE);
    float narrow = highlight(n, view, key_direction, roughness * 0.6, REFLECTANCE);
    vec3 specular = key_colour * (0.70 * broad + 0.16 * narrow * (1.0 + 2.0 * lip * lip_gloss)) * lit * PI * shine;
    // Fill and rim: Blinn and Phong's highlight, which is cheaper and does for soft lights.
    float power = 2.0 / pow(roughness, 4.0) - 2.0;
    float scale = REFLECTANCE * (power + 2.0) * 0.125;
    float from_fill = pow(max(dot(n, normalize(fill_direction + view)), 0.0), power) * max(dot(n, fill_direction), 0.0);
    float from_rim = pow(max(dot(n, normalize(rim_direction + view)), 0.0), power) * max(dot(n, rim_direction), 0.0);
    from_rim *= 1.0 + 12.0 * pow(1.0 - nv, 4.0);
    specular += shine * scale * (fill_colour * from_fill + rim_colour * from_rim);
    specular += ambient(reflect(-view, n)) * open_sky * (REFLECTANCE + 0.5 * pow(1.0 - nv, 5.0)) * 0.55 * shine;

    colour = vec4(tone_mapped(albedo * diffuse + specular * open_sky), 1.0);
}
